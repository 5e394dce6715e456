"""Test networks: initial weights, image sizes, output shapes, the registry and custom backbones."""

import math

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torchvision.models import mobilenet_v3_small

from hsakd_pl import TeacherModule, create_network, list_networks, register_network
from hsakd_pl.errors import UsageError
from hsakd_pl.networks import NetworkOutput, StagedBackbone, as_network

CIFAR = ["mobilenetv2", "mobilenetv2_stride2", "shufflenetv1", "shufflenetv2", "resnet50", "resnet8x4", "resnet32x4"]
CIFAR += [f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)] + [f"vgg{depth}" for depth in (8, 11, 13, 16, 19)]
CIFAR += ["wrn_40_2", "wrn_40_1", "wrn_16_2", "wrn_16_1"]
IMAGENET = ["resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet"]

# How convolutions, linear weights and linear biases start: "fan_out" is N(0, 2 / (k * k * out)), "default" is PyTorch's
# uniform one, a number is the standard deviation of a normal (0: all zeros).
DEFAULT = ("default", "default", "default")
FAMILIES = {
    "resnet8": (("fan_out", "default", "default"), ("fan_out", "default", 0)),
    "resnet8x4": (("fan_out", "default", "default"), ("fan_out", "default", 0)),
    "resnet50": (("fan_out", "default", "default"), ("fan_out", "default", "default")),
    "resnet18_imagenet": (("fan_out", "default", "default"), ("fan_out", "default", "default")),
    "resnet50_imagenet": (("fan_out", "default", "default"), ("fan_out", "default", "default")),
    "wrn_16_2": (("fan_out", "default", 0), ("fan_out", "default", 0)),
    "vgg13": (("fan_out", 0.01, 0), DEFAULT),
    "mobilenetv2": (("fan_out", 0.01, 0), ("fan_out", 0.01, 0)),
    "shufflenetv1": (DEFAULT, ("fan_out", "default", 0)),
    "shufflenetv2": (DEFAULT, DEFAULT),
}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo registrations after a test."""
    from hsakd_pl.networks import registry

    torch.manual_seed(0)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def assert_drawn(values: Tensor, rule: str | float, fan_in: int, fan_out: int = 1) -> None:
    """Check the sample's standard deviation and, if it is large enough, its distribution."""
    std = {"default": 1 / math.sqrt(3 * fan_in), "fan_out": math.sqrt(2 / fan_out)}.get(str(rule)) or float(rule)
    # standard error of a normal sample's standard deviation, 5 times; a uniform sample's is smaller
    assert values.square().mean().sqrt().item() == pytest.approx(std, rel=5 / math.sqrt(2 * values.numel()), abs=1e-12)
    if rule == "default":
        assert values.abs().max() <= 1 / math.sqrt(fan_in)
    elif std > 0 and values.numel() > 1000:
        assert values.abs().max() > 2 * std


@pytest.mark.parametrize("part", ["backbone", "branches"])
@pytest.mark.parametrize("name", FAMILIES)
def test_initial_weights_follow_published_code(name: str, part: str) -> None:
    conv_rule, weight_rule, bias_rule = FAMILIES[name][part == "branches"]
    depthwise = 0
    for layer in create_network(name).get_submodule(part).modules():
        if isinstance(layer, nn.Conv2d):
            fan_in, fan_out = layer.weight[0].numel(), layer.kernel_size[0] ** 2 * layer.out_channels
            assert_drawn(layer.weight, conv_rule, fan_in, fan_out)
            depthwise += layer.groups == layer.in_channels > 1
            if layer.bias is not None:
                assert_drawn(layer.bias, 0 if conv_rule == "fan_out" else "default", fan_in, fan_out)
        elif isinstance(layer, nn.Linear):
            assert_drawn(layer.weight, weight_rule, layer.in_features)
            assert_drawn(layer.bias, bias_rule, layer.in_features)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.eq(1).all()
            assert layer.bias.eq(0).all()
    assert (depthwise > 0) == (name in ("mobilenetv2", "shufflenetv1", "shufflenetv2"))


def test_all_networks_are_registered() -> None:
    assert set(CIFAR + IMAGENET) <= set(list_networks())
    assert list_networks() == sorted(list_networks())


@pytest.mark.parametrize("name", list_networks())
@torch.no_grad()
def test_networks_accept_images_from_their_least_size(name: str) -> None:
    network = create_network(name, num_classes=7).eval()
    needed = math.prod(network.backbone.strides)
    large = {**dict.fromkeys(IMAGENET, 32), "mobilenetv2_stride2": 16, "resnet50": 8}
    assert needed == large.get(name, 4 if name.startswith(("wrn", "resnet")) else 8)
    for size in {needed, 16, 30, 64} - set(range(needed)):
        output = network(torch.randn(2, 3, size, size))
        assert output.logits.shape == (2, 7)
        assert [joint.shape for joint in output.joint_logits] == [(2, 28)] * len(network.branches)
        assert len(output.features) == len(network.branches)
        tensors = (output.logits, output.embedding, *output.joint_logits, *output.features)
        assert all(found.isfinite().all() for found in tensors)
    with pytest.raises(
        UsageError, match=rf"image size {needed - 1} x {needed - 1}: .* at least {needed} x {needed} pixels"
    ):
        network(torch.randn(2, 3, needed - 1, needed - 1))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "mobilenetv2", "shufflenetv2", "resnet18_imagenet"])
@torch.no_grad()
def test_networks_accept_large_images(name: str) -> None:
    output = create_network(name, num_classes=5).eval()(torch.randn(1, 3, 224, 224))
    assert output.logits.shape == (1, 5)
    assert all(joint.shape == (1, 20) for joint in output.joint_logits)


@pytest.mark.parametrize(("name", "branches"), [("resnet20", 3), ("wrn_16_2", 3), ("shufflenetv1", 3), ("vgg13", 4)])
def test_networks_build_with_and_without_branches(name: str, branches: int) -> None:
    network = create_network(name).eval()
    output = network(torch.randn(2, 3, 32, 32))
    assert isinstance(output, NetworkOutput)
    assert len(output.joint_logits) == branches
    bare = create_network(name, branches=False).eval()
    bare.load_state_dict(network.backbone.state_dict())
    torch.manual_seed(1)
    images = torch.randn(2, 3, 32, 32)
    logits = bare(images)
    assert isinstance(logits, Tensor)
    assert torch.equal(logits, network(images).logits)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_scripted_network_equals_network(name: str, branches: bool) -> None:
    network, images = create_network(name, 5, branches).eval(), torch.randn(2, 3, 64, 64)
    scripted = torch.jit.script(network)
    found, expected = scripted(images), network(images)
    torch.testing.assert_close(found.logits if branches else found, expected.logits if branches else expected)
    if branches:
        torch.testing.assert_close(found.joint_logits, expected.joint_logits)
    with pytest.raises(Exception, match="at least"):
        scripted(torch.randn(2, 3, 2, 2))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_features_and_embedding_are_equal_with_and_without_branches(name: str) -> None:
    network, images = create_network(name, 5).eval(), torch.randn(2, 3, 32, 32)
    whole, bare = network(images), network.without_branches
    features = bare.forward_features(images)
    torch.testing.assert_close(list(whole.features), features, rtol=0, atol=0)
    embedding = bare.forward_head(features[-1], pre_logits=True)
    assert torch.equal(embedding, whole.embedding) and torch.equal(bare.forward_head(features[-1]), bare(images))
    assert torch.equal(bare.head[-1](embedding), whole.logits)
    alone = bare.outputs(images)
    assert torch.equal(alone.embedding, embedding) and not alone.joint_logits and len(alone.features) == len(features)
    assert torch.equal(whole.pooled_map, alone.pooled_map)
    torch.testing.assert_close(alone.pooled_map.mean((2, 3)), embedding)
    assert torch.equal(network.linear_head(embedding), whole.logits)
    assert (bare.num_classes, len(bare.branches), bare.transforms) == (5, 0, network.transforms)


def test_any_module_serves_as_network_without_branches() -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    network, images = as_network(own, 5), torch.randn(2, 3, 4, 4)
    assert as_network(network, 5) is network.without_branches is network
    assert torch.equal(network.outputs(images).logits, own(images)) and not network.branches
    with pytest.raises(UsageError, match=r"Sequential returns \(2, 5\) instead of logits \(2, 6\): set num_classes"):
        as_network(own, 6).outputs(images)
    with pytest.raises(UsageError, match=r"HSAKDNet|returns list instead of logits"):
        as_network(nn.Identity(), 5).outputs([images])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "close"), [("resnet56x", "resnet56"), ("wrn-40-2", "wrn_40_2"), ("vgg12", "vgg13")])
def test_unknown_network_suggests_close_names(name: str, close: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown network '{name}': did you mean .*{close}"):
        create_network(name)


def test_invalid_network_names_and_class_counts_raise() -> None:
    with pytest.raises(UsageError, match=r"unknown network 'zzz': choose one of .*resnet8"):
        create_network("zzz")
    with pytest.raises(UsageError, match=r"num_classes: .* at least 2 classes, got 1"):
        create_network("resnet8", num_classes=1)
    with pytest.raises(UsageError, match="'resnet8' is already registered"):
        register_network("resnet8")(lambda num_classes: create_network("resnet8", num_classes).backbone)


def assert_trains(module: TeacherModule, size: int) -> None:
    """Check that every parameter gets a gradient and that a few steps on one batch lower the loss."""
    batch = torch.randn(4, 3, size, size), torch.arange(4)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(4):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert losses[-1] < losses[0]


def test_custom_backbone_gets_branches_and_trains() -> None:
    @register_network("tiny")
    class Tiny(StagedBackbone):
        def __init__(self, num_classes: int) -> None:
            super().__init__(nn.Conv2d(3, 4, 1), channels=(4, 8, 16), strides=(1, 2, 2), num_classes=num_classes)

        def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
            convolution = nn.Conv2d(in_channels, self.channels[stage], 3, stride, padding=1)
            return nn.Sequential(convolution, nn.BatchNorm2d(self.channels[stage]), nn.ReLU())

        def make_head(self, num_outputs: int) -> nn.Module:
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_outputs))

    assert "tiny" in list_networks()
    assert_trains(TeacherModule("tiny", num_classes=5, lr=0.01), size=8)


def test_torchvision_backbone_gets_branches() -> None:
    @register_network("mobilenet_v3_small")
    class MobileNetV3Small(StagedBackbone):
        """Cut torchvision's network into stages where its feature maps shrink."""

        def __init__(self, num_classes: int) -> None:
            stem = mobilenet_v3_small().features[:2]
            super().__init__(stem, channels=(16, 24, 48, 96), strides=(4, 2, 2, 2), num_classes=num_classes)

        def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
            first, end = ((2, 4), (4, 9), (9, 12))[stage - 1]
            blocks = mobilenet_v3_small().features[first:end]
            return blocks if stride == 2 else blocks[1:]  # the last branch: without the block that shrinks

        def make_head(self, num_outputs: int) -> nn.Module:
            last = mobilenet_v3_small().features[12]
            return nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(576, num_outputs))

    original = mobilenet_v3_small().features[:12].eval()
    network = create_network("mobilenet_v3_small", num_classes=5).eval()
    keys = [key for key in network.backbone.state_dict() if not key.startswith("head.")]
    weights = dict(zip(keys, original.state_dict().values(), strict=True))
    network.backbone.load_state_dict(weights, strict=False)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.backbone.forward_features(images)[-1], original(images))
    assert [joint.shape for joint in network(images).joint_logits] == [(2, 20)] * 3
    assert_trains(TeacherModule(network, lr=0.01), size=64)
