"""Test that weight files of other projects load: their tensors alone, under any prefix, in parts and of any version."""

import enum
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from hsakd_pl.networks import as_network
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


class Held(nn.Module):
    """Hold a network in an attribute that wrappers use too."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)


WRAPPED: dict[str, Any] = {
    "DataParallel": lambda: nn.DataParallel(Held().module),
    "compiled": lambda: torch.compile(Held().module, backend="eager"),
    "attribute": Held,
    "both": lambda: nn.DataParallel(nn.Sequential(Held(), nn.Linear(4, 4))),
}


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_network_takes_its_own_weights_and_those_of_what_it_wraps(name: str, inner: bool) -> None:
    torch.manual_seed(0)
    expected = WRAPPED[name]().state_dict()
    state = {key.replace("module.", "").replace("_orig_mod.", "") if inner else key: expected[key] for key in expected}
    for prefix in ("", "networks.0.network."):
        found = load_weights(as_network(WRAPPED[name](), 4), under(prefix, state)).without_branches.network
        torch.testing.assert_close(dict(found.state_dict()), dict(expected), rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"])
def test_prefixes_of_pytorchs_wrappers_are_left_out_anywhere_in_a_name(wrapper: str) -> None:
    def wrapped(key: str) -> str:
        first, _, rest = key.partition(".")
        return f"{first}.{wrapper}.{rest}"

    assert_loaded({wrapped(key): tensor for key, tensor in weights().items()})
    assert_loaded(under(f"{wrapper}.", weights()))


def moved(state: State) -> State:
    return {key: tensor + 1 for key, tensor in state.items()}


ENVELOPES: dict[str, Any] = {
    "DeepSpeed": {"module": weights(), "buffer_names": [], "param_shapes": [{"a": torch.Size([3])}], "optimizer": None},
    "an average": {**under("module.", weights()), "n_averaged": torch.tensor(5)},
    "an average beside others": {"net": under("model.", weights()) | {"step": torch.ones(1, dtype=torch.long)}},
    "half": {key: tensor.half() for key, tensor in weights().items()},
    "bfloat16": {key: tensor.bfloat16() for key, tensor in weights().items()},
    "half, and many batches": {
        key: (tensor if tensor.is_floating_point() else tensor + 10**6).half() for key, tensor in weights().items()
    },
}


@pytest.mark.parametrize("kind", ENVELOPES)
def test_state_dicts_of_other_programs_load(kind: str, tmp_path: Path) -> None:
    torch.save(ENVELOPES[kind], tmp_path / "w.pth")
    found = published_state_dict(load_weights(network(), tmp_path / "w.pth"))
    for key, tensor in weights().items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0.01 if tensor.is_floating_point() else 0)


REFUSED: dict[str, tuple[Any, str]] = {
    "another name": ({"net_dict": weights(), "epoch": 3}, r"epoch \(int\); name the file with #net_dict at its end"),
    "two networks": ({"G": weights(), "D": weights()}, "name the file with #G at its end to take that$"),
    "nested": ({"best": {"net": weights()}, "last": {"net": weights()}}, "name the file with #best at its end"),
    "arrays": ({key: tensor.numpy() for key, tensor in weights().items()}, "holds NumPy arrays.*: save tensors"),
    "arrays inside": ({"net": {"fc.weight": np.ones((4, 64))}}, "holds NumPy arrays.*: save tensors"),
    "optimizer": ({"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 1}, r"found .*epoch \(int\)$"),
    "its state": ({"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}, r"param_groups \(list\)$"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_without_one_state_dict_are_refused_with_a_remedy(kind: str, tmp_path: Path) -> None:
    content, sentence = REFUSED[kind]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=sentence):
        load_weights(network(), tmp_path / "w.pth")
    if "#" in sentence:
        assert_loaded(f"{tmp_path / 'w.pth'}#{next(iter(content))}")


TWO_SETS = [
    ("teacher_model.", "student_model."),
    ("model.teacher.", "model.student."),
    ("ema_model.module.", "model."),
    ("t_net.", "student."),
]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("prefixes", TWO_SETS)
def test_two_sets_of_weights_in_one_state_dict_are_named_and_can_be_chosen(
    prefixes: tuple[str, str], first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, taken = prefixes
    sets = [under(other, moved(weights())), under(taken, weights())]
    state = sets[first] | sets[1 - first] | {"initted": torch.tensor(True)}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 1}, path)
    caplog.set_level("INFO")
    assert_loaded(path)
    entry = other.removesuffix("module.").removesuffix(".")
    assert f"name the file with #{entry}" in caplog.text
    found = published_state_dict(load_weights(network(), f"{path}#{entry}"))
    torch.testing.assert_close(found, moved(weights()), rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"no weights under average"):
        load_weights(network(), f"{path}#average")
