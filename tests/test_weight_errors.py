"""Test that unreadable or mismatched weight files raise one message with the reason and change nothing."""

import os
import pickle
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn

from hsakd_pl import create_network, load_weights, published_state_dict
from hsakd_pl.errors import UsageError


@pytest.fixture
def targets() -> Iterator[list[nn.Module]]:
    """Return networks of 4 and 6 classes and check that the test leaves them unchanged."""
    made = [create_network("resnet8", num_classes) for num_classes in (4, 6)]
    before = [deepcopy(network.state_dict()) for network in made]
    yield made
    for network, state in zip(made, before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


class Malicious:
    """Create a file if unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weight_files_with_code_are_refused_and_not_run(tmp_path: Path, targets: list[nn.Module]) -> None:
    bad = {"net": Malicious(tmp_path / "trace")}
    torch.save(bad, tmp_path / "torch.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(bad))
    for name in ("torch.pth", "pickle.pth"):
        with pytest.raises(UsageError, match=rf"weight file {tmp_path / name} ") as error:
            load_weights(targets[0], tmp_path / name)
        assert "mkdir" in str(error.value) or "cannot be read" in str(error.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_weight_files_raise_naming_file(tmp_path: Path, targets: list[nn.Module], suffix: str) -> None:
    torch.save(published_state_dict(targets[0]), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for part in (1, 100, len(whole) // 2, len(whole) - 30):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[:part])
        with pytest.raises(
            UsageError, match=rf"weight file {path} cannot be read, it is truncated or no weight file"
        ) as e:
            load_weights(targets[0], path)
        assert len(str(e.value)) < 500


def test_other_files_as_weights_raise_naming_file(tmp_path: Path, targets: list[nn.Module]) -> None:
    (tmp_path / "text.pth").write_text("404: not found")
    with pytest.raises(UsageError, match=r"text.pth cannot be read, it is text"):
        load_weights(targets[0], tmp_path / "text.pth")
    for path, cause in (
        (tmp_path, "is not a file: name the file in it"),
        (tmp_path / "w.pth", "does not exist: check"),
    ):
        with pytest.raises(UsageError, match=rf"weight file {path} {cause}"):
            load_weights(targets[0], path)


@pytest.mark.parametrize("state", [{}, {"net": {}}, {"net": 3}, {"epoch": torch.zeros(1), "lr": 0.1}, [torch.zeros(1)]])
def test_files_without_state_dict_raise_naming_content(tmp_path: Path, targets: list[nn.Module], state: Any) -> None:
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"weights.pth contains no state dict: expected one alone or under net, "):
        load_weights(targets[0], tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("other", "messages"),
    [
        (("resnet8", 5), ["8 of another shape: ", r"head.fc.weight \(\(5, 64\), .*\(4, 64\)", "num_classes"]),
        (("resnet14", 4), [r"84 unexpected: \S*layer1.1.conv1.weight, .* and 81 more"]),
        (("vgg8", 4), ["missing: backbone.stem.conv1.weight", r"unexpected: \S*block0.0.weight"]),
        (("resnet8x4", 4), ["unexpected: .*downsample", "another shape: .*stem.conv1.weight"]),
    ],
)
def test_mismatched_weights_raise_listing_tensors(
    tmp_path: Path, targets: list[nn.Module], other: tuple[str, int], messages: list[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"net": published_state_dict(create_network(*other))}, path)
    with pytest.raises(UsageError, match=rf"{path} does not fit CIFARResNet with branches of 4 classes") as error:
        load_weights(targets[0], path)
    assert [message for message in messages if not re.search(message, str(error.value))] == []


def test_mismatched_backbone_weights_raise(targets: list[nn.Module]) -> None:
    state = published_state_dict(create_network("resnet14", 4, branches=False))
    with pytest.raises(UsageError, match=r"the given state dict does not fit .* unexpected: \S*layer1.1.conv1.weight"):
        load_weights(targets[0], state)
    with pytest.raises(UsageError, match=r"does not fit CIFARResNet of 4 classes"):
        load_weights(create_network("resnet8", 4, branches=False), state)


def test_failed_peer_load_changes_no_peer(targets: list[nn.Module]) -> None:
    pair = published_state_dict([create_network("resnet8", 4) for _ in range(2)])
    for peers in (targets, targets[:1], [*targets[:1] * 3]):
        with pytest.raises(UsageError):
            load_weights(peers, pair)
