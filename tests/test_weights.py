"""Test that every envelope, key style and kind of network loads."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file
from small import loader, make, trainer
from torch import Tensor
from torchvision.models import resnet34

from hsakd_pl.networks import create_network, list_networks
from hsakd_pl.networks.keys import published_state_dict
from hsakd_pl.networks.weights import load_weights

State = dict[str, Tensor]


def network(seed: int = 0, name: str = "resnet8", num_classes: int = 4, branches: bool = True) -> nn.Module:
    """Return a network whose floats, running statistics included, are drawn with ``seed``."""
    torch.manual_seed(seed)
    made = create_network(name, num_classes, branches)
    for tensor in made.state_dict().values():
        tensor.uniform_(0.1, 1) if tensor.is_floating_point() else tensor.fill_(seed + 1)
    return made


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("name", list_networks())
def test_published_keys_round_trip(name: str, branches: bool) -> None:
    with torch.device("meta"):
        target = create_network(name, 2, branches)
    target.to_empty(device="cpu")
    for keys in (nn.Module.state_dict, published_state_dict):
        wanted = {key: torch.full_like(tensor, position) for position, (key, tensor) in enumerate(keys(target).items())}
        assert load_weights(target, wanted) is target
        found = keys(target)
        assert list(found) == list(wanted)
        assert same(found, wanted)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("envelope", ["net", "state_dict", "model", None])
@pytest.mark.parametrize("keys", [nn.Module.state_dict, published_state_dict])
def test_weight_envelopes_load(
    tmp_path: Path, keys: Callable[[nn.Module], State], envelope: str | None, prefix: str
) -> None:
    source, target = network(1), network(2)
    state: Mapping[str, Any] = {prefix + key: tensor for key, tensor in keys(source).items()}
    if envelope:
        state = {envelope: state, "epoch": 240, "acc": 0.7, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    torch.save(state, tmp_path / "weights.pth.tar")
    assert same(load_weights(target, tmp_path / "weights.pth.tar").state_dict(), source.state_dict())
    assert same(load_weights(network(2), state).state_dict(), source.state_dict())


def test_harmless_companions_of_weights_are_ignored(tmp_path: Path) -> None:
    """Store options as CRD does, and a numpy accuracy."""
    state = {"opt": argparse.Namespace(lr=0.05), "acc": np.float64(0.7), "model": published_state_dict(network(1))}
    torch.save(state, tmp_path / "last.pth")
    assert same(load_weights(network(2), tmp_path / "last.pth").state_dict(), network(1).state_dict())


@pytest.mark.parametrize("keys", [nn.Module.state_dict, published_state_dict])
def test_safetensors_weights_load(tmp_path: Path, keys: Callable[[nn.Module], State]) -> None:
    save_file({key: tensor.contiguous() for key, tensor in keys(network(1)).items()}, tmp_path / "w.safetensors")
    assert same(load_weights(network(2), str(tmp_path / "w.safetensors")).state_dict(), network(1).state_dict())


def test_half_precision_weights_keep_network_precision() -> None:
    halves = {key: t.half() if t.is_floating_point() else t for key, t in published_state_dict(network(1)).items()}
    loaded = published_state_dict(load_weights(network(2), halves))
    assert all(loaded[key].dtype == (torch.float32 if t.is_floating_point() else t.dtype) for key, t in halves.items())
    assert all(torch.equal(loaded[key], tensor.to(loaded[key].dtype)) for key, tensor in halves.items())


@pytest.mark.parametrize("branches", [True, False])
def test_crd_classifier_keys_load(branches: bool) -> None:
    source = network(1, "mobilenetv2", branches=False)
    state = {key.replace("classifier.", "classifier.0."): t for key, t in published_state_dict(source).items()}
    assert "classifier.0.weight" in state
    loaded = load_weights(network(2, "mobilenetv2", branches=branches), {"model": state})
    assert same(getattr(loaded, "backbone", loaded).state_dict(), source.state_dict())


def test_torchvision_weights_load_into_imagenet_resnets() -> None:
    theirs = resnet34(weights=None).eval()
    ours = load_weights(create_network("resnet34_imagenet", 1000, branches=False), theirs.state_dict()).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("keys", [nn.Module.state_dict, published_state_dict])
def test_backbone_weights_leave_branches_unchanged(keys: Callable[[nn.Module], State]) -> None:
    source, target = network(1, branches=False), network(2)
    load_weights(target, keys(source))
    assert same(target.backbone.state_dict(), source.state_dict())
    assert same(target.branches.state_dict(), network(2).branches.state_dict())


@pytest.mark.parametrize("keys", [nn.Module.state_dict, published_state_dict])
def test_backbone_loads_from_whole_network_weights(keys: Callable[[nn.Module], State]) -> None:
    loaded = load_weights(network(2, branches=False), keys(network(1)))
    assert same(loaded.state_dict(), network(1).backbone.state_dict())


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("kind", ["baseline", "teacher", "student"])
def test_lightning_checkpoints_load_as_weights(tmp_path: Path, kind: str, built: bool) -> None:
    module = make(kind, built)
    trainer(tmp_path).fit(module, loader())
    trained, target = module.network, load_weights(network(2), tmp_path / "last.ckpt")
    if trained.branches:
        assert same(target.state_dict(), trained.state_dict())
    else:
        assert same(target.branches.state_dict(), network(2).branches.state_dict())
    bare = load_weights(network(2, branches=False), tmp_path / "last.ckpt")
    assert same(bare.state_dict(), trained.without_branches.state_dict())


@pytest.mark.parametrize("names", [("resnet8", "resnet8"), ("resnet8", "resnet14", "wrn_16_1")])
def test_peer_weights_round_trip_from_every_source(tmp_path: Path, names: tuple[str, ...]) -> None:
    module = make("mutual", networks=list(names))
    trainer(tmp_path).fit(module, loader())
    published = published_state_dict(module.networks)
    assert {key.split(".")[0] for key in published} == {f"net{peer}" for peer in range(1, len(names) + 1)}
    for source in (
        published,
        {"net": {f"module.{key}": tensor for key, tensor in published.items()}},
        tmp_path / "last.ckpt",
    ):
        targets = [network(9, name) for name in names]
        assert load_weights(targets, source) is targets
        assert same(published_state_dict(targets), published)


def test_non_strict_load_takes_matching_tensors() -> None:
    source, target = network(1, num_classes=5), network(2)
    load_weights(target, {**published_state_dict(source), "stranger": torch.zeros(1)}, strict=False)
    heads = {key for key in target.state_dict() if ".fc." in key}
    wanted = {key: (network(2) if key in heads else source).state_dict()[key] for key in target.state_dict()}
    assert len(heads) == 8
    assert same(target.state_dict(), wanted)
