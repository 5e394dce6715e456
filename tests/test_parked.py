"""Test that weights in a file stay the weights of their network, and that they leave memory."""

import copy
import re
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl import create_network
from hsakd_pl.fast.folded import Folded
from hsakd_pl.fast.parked import Parked

STATUS = Path("/proc/self/status")


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].stride() == tensor.stride(), name


def resident_bytes() -> int:
    """Return the bytes of files that are in the memory of this process."""
    (kilobytes,) = re.findall(r"RssFile:\s*(\d+) kB", STATUS.read_text())
    return 1024 * int(kilobytes)


def test_parked_weights_keep_values_layout_and_identity() -> None:
    network = create_network("resnet8", 10).to(memory_format=torch.channels_last)
    before = state(network)
    parameters = [*network.parameters()]
    parked = Parked(network)
    assert_equal(state(network), before)
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    parked.release()
    assert_equal(state(network), before)
    parked.restore()
    del parked
    assert_equal(state(network), before)


def test_parked_weights_can_be_changed_and_copied() -> None:
    network = nn.Linear(4, 4)
    parked = Parked(network)
    with torch.no_grad():
        network.weight.fill_(2)
    copied = copy.deepcopy(network)
    parked.release()
    assert torch.equal(network.weight, torch.full((4, 4), 2.0))
    assert copied.weight.untyped_storage().nbytes() == 4 * 4 * 4
    with torch.no_grad():
        copied.weight.fill_(3)
    assert torch.equal(network.weight, torch.full((4, 4), 2.0))


def test_tensors_that_share_memory_still_share_it() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = nn.Parameter(network[0].weight.detach().t())
    Parked(network)
    with torch.no_grad():
        network[0].weight[0, 1] = 5
    assert network[1].weight[1, 0] == 5


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell the memory of a process")
def test_parked_weights_leave_memory() -> None:
    network = nn.Linear(2**12, 2**13)  # 128 MiB
    before = resident_bytes()
    parked = Parked(network)
    assert resident_bytes() < before + 50 * 2**20
    float(network.weight.detach().sum())
    assert resident_bytes() > before + 100 * 2**20
    parked.release()
    assert resident_bytes() < before + 50 * 2**20


def test_weights_stay_in_memory_without_a_folder_for_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    network = nn.Linear(4, 4)
    address = network.weight.data_ptr()
    with caplog.at_level("INFO"):
        parked = Parked(network)
    assert network.weight.data_ptr() == address
    assert "stay in memory" in caplog.text
    parked.release()
    parked.restore()


def test_folded_network_falls_back_to_parked_weights_that_have_changed() -> None:
    network = create_network("resnet8", 10).eval().requires_grad_(False)
    images = torch.rand(4, 3, 32, 32)
    with Folded(network, park=True) as folded:
        assert torch.allclose(folded(images).logits, network(images).logits, atol=1e-4)
        with torch.no_grad():
            network.backbone.head.fc.weight.mul_(2)
        assert torch.equal(folded(images).logits, network(images).logits)
    assert torch.equal(folded(images).logits, network(images).logits)
