"""Test that weight files of other projects load: their tensors alone, under any prefix, in parts and of any version."""

import enum
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torchvision
from pytorch_lightning.utilities.parsing import AttributeDict
from safetensors.torch import save_file
from torch import Tensor

from hsakd_pl import create_network, load_weights
from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import file_sha256
from hsakd_pl.networks.keys import published_state_dict

State = dict[str, Tensor]


def network() -> nn.Module:
    return create_network("resnet8", 4, branches=False)


def weights() -> State:
    torch.manual_seed(7)
    return published_state_dict(network())


def assert_loaded(source: Any) -> None:
    found = load_weights(network(), source)
    torch.testing.assert_close(published_state_dict(found), weights(), rtol=0, atol=0)


def under(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


BESIDE: dict[str, State] = {
    "a criterion": {"criterion.weight": torch.ones(4)},
    "metrics": {"train_acc.total": torch.zeros(1), "val_acc.total": torch.zeros(1), "ema_decay": torch.zeros(())},
    "a head of another task": under("projector.", nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).state_dict()),
    "a larger teacher": under("teacher.", create_network("resnet14", 4, branches=False).state_dict()),
}


@pytest.mark.parametrize("prefix", ["model.", "net.backbone.", "student_model.module."])
@pytest.mark.parametrize("beside", BESIDE)
def test_weights_under_a_prefix_load_and_others_are_named(
    prefix: str, beside: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert_loaded({"state_dict": under(prefix, weights()) | BESIDE[beside]})
    assert next(iter(BESIDE[beside])) in caplog.text


def test_weights_under_a_prefix_that_are_not_all_are_refused() -> None:
    state = under("model.", weights()) | BESIDE["a criterion"]
    del state["model.fc.bias"]
    with pytest.raises(UsageError, match=r"1 missing: head\.fc\.bias"):
        load_weights(network(), state)


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    pass


class Names(list):
    pass


class Options:
    def __init__(self) -> None:
        self.lr = 0.1


def scheduled(epoch: int) -> float:
    return 0.9**epoch


HYPER_PARAMETERS = {
    "a partial": partial(torch.optim.SGD, lr=0.1),
    "a class": nn.GELU,
    "a loss": nn.CrossEntropyLoss(torch.ones(4)),
    "a function": scheduled,
    "an enumeration": Colour.RED,
    "an object": Options(),
    "a dict of Lightning": AttributeDict(lr=0.1, names=["a"]),
    "a dict of a class": Config(lr=0.1),
    "a list of a class": Names(["a", "b"]),
    "a method": Options.__init__,
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HYPER_PARAMETERS)
def test_tensors_of_a_checkpoint_load_beside_any_option(kind: str, zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": under("model.", weights()), "hyper_parameters": {"x": HYPER_PARAMETERS[kind]}}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    if not zipped and kind in ("a class", "a loss"):  # PyTorch's reader without code takes no such file
        with pytest.raises(UsageError, match="with classes of layers: save the state dict alone"):
            load_weights(network(), tmp_path / "last.ckpt")
    else:
        assert_loaded(tmp_path / "last.ckpt")


def touch(path: str) -> None:
    Path(path).touch()


class Calling:
    """Write a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return touch, (str(self.path),)


@pytest.mark.parametrize("beside_weights", [True, False])
def test_call_in_a_weight_file_is_never_made(beside_weights: bool, tmp_path: Path) -> None:
    content = {"x": Calling(tmp_path / "touched")}
    if beside_weights:
        torch.save(content | {"state_dict": weights()}, tmp_path / "w.pth")
        assert_loaded(tmp_path / "w.pth")
    else:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UsageError, match=r"asks to run .*, which was refused: save the state dict alone"):
            load_weights(network(), tmp_path / "w.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_with_an_index_load(kind: str, tmp_path: Path) -> None:
    state = weights()
    names = [f"model-{number:05}-of-00003.{kind}" for number in (1, 2, 3)]
    weight_map = {key: names[number % 3] for number, key in enumerate(state)}
    for name in names:
        shard = {key: tensor.contiguous() for key, tensor in state.items() if weight_map[key] == name}
        if kind == "bin":
            torch.save(shard, tmp_path / name)
        else:
            save_file(shard, tmp_path / name)
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    assert_loaded(index)
    before = file_sha256(index)
    (tmp_path / names[1]).write_bytes((tmp_path / names[0]).read_bytes())
    assert file_sha256(index) != before
    with pytest.raises(UsageError, match=f"{names[1]}, which holds no further weights"):
        load_weights(network(), index)
    (tmp_path / names[2]).unlink()
    (tmp_path / names[1]).unlink()
    with pytest.raises(UsageError, match=f"{names[1]}, which is not in its folder: fetch that file too"):
        load_weights(network(), index)
    index.write_text(json.dumps({"weight_map": {"fc.weight": "../w.safetensors"}}))
    with pytest.raises(UsageError, match=r"'\.\./w\.safetensors', which is not a weight file in its folder"):
        load_weights(network(), index)


class SpectralNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


class Versioned(nn.Module):
    """Accept state dicts of its second version alone."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        assert local_metadata.get("version") == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("make", [partial(torchvision.models.mnasnet0_5, num_classes=4), SpectralNorm, Versioned])
def test_network_whose_state_dict_has_a_version_loads(make: Any, tmp_path: Path) -> None:
    torch.save(make().state_dict(), tmp_path / "w.pth")
    expected = torch.load(tmp_path / "w.pth", weights_only=True)
    loaded = load_weights(make(), tmp_path / "w.pth").state_dict()
    torch.testing.assert_close(dict(loaded), dict(expected), rtol=0, atol=0)


def collection(name: str, depth: int) -> State:
    """Return weights with the keys of a CIFAR collection: pytorchcv's, or chenyaofo's of torch.hub."""
    made = dict(create_network(f"resnet{depth}", 10, branches=False).state_dict())
    state: State = {}

    def take(key: str, own: str) -> None:
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if f"{own}.{part}" in made:
                state[f"{key}.{part}"] = made[f"{own}.{part}"]

    pytorchcv = name == "pytorchcv"
    take("features.init_block.conv" if pytorchcv else "conv1", "stem.conv1")
    take("features.init_block.bn" if pytorchcv else "bn1", "stem.bn1")
    for stage in range(3):
        for unit in range((depth - 2) // 6):
            own = f"stages.{stage}.{unit}"
            for number in (1, 2):
                block = f"features.stage{stage + 1}.unit{unit + 1}.body.conv{number}"
                take(f"{block}.conv" if pytorchcv else f"layer{stage + 1}.{unit}.conv{number}", f"{own}.conv{number}")
                take(f"{block}.bn" if pytorchcv else f"layer{stage + 1}.{unit}.bn{number}", f"{own}.bn{number}")
            if unit == 0 and stage > 0:
                block = f"features.stage{stage + 1}.unit1.identity_conv"
                take(f"{block}.conv" if pytorchcv else f"layer{stage + 1}.0.downsample.0", f"{own}.downsample.0")
                take(f"{block}.bn" if pytorchcv else f"layer{stage + 1}.0.downsample.1", f"{own}.downsample.1")
    take("output" if pytorchcv else "fc", "head.fc")
    assert len(state) == len(made)
    return state


@pytest.mark.parametrize("depth", [20, 56, 110])
@pytest.mark.parametrize("name", ["pytorchcv", "chenyaofo"])
def test_files_of_cifar_collections_load_by_their_keys(name: str, depth: int) -> None:
    torch.manual_seed(3)
    state = collection(name, depth)
    for wanted in (False, True):
        found = load_weights(create_network(f"resnet{depth}", 10, branches=wanted), state)
        part = found.without_branches.state_dict()
        assert [tensor.sum() for tensor in part.values()] == [tensor.sum() for tensor in state.values()]
