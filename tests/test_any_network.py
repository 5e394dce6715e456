"""Test networks that people bring: what makes a fit faster, and what is shared or cut, never changes them silently."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
from small import CLASSES, Losses, loader, norms, trainer
from torch import Tensor
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from hsakd_pl import create_network
from hsakd_pl.errors import UsageError
from hsakd_pl.fast.folded import Folded
from hsakd_pl.fast.norms import layers as norm_layers
from hsakd_pl.fast.winograd import layers
from hsakd_pl.methods import FitNetModule, KDModule
from hsakd_pl.networks import NetworkOutput, StagedBackbone, as_network
from hsakd_pl.networks.network import Network

WIDTH = 32


@pytest.fixture(autouse=True)
def small_maps_use_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MIN_WORK", 0)
    monkeypatch.setattr(norm_layers, "MIN_VALUES", 0)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def images(count: int = 12, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_equal_outputs(found: NetworkOutput, expected: NetworkOutput) -> None:
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4 * float(expected.logits.abs().max()))


class Plain(nn.Module):
    """A network of someone: two convolutions, a norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(self.first(images).relu())).relu().mean((2, 3)))


class Staged(StagedBackbone):
    """The same layers as stages, which are folded."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__(nn.Conv2d(3, WIDTH, 3, padding=1), (WIDTH, WIDTH), (1, 1), num_classes)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(in_channels, WIDTH, 3, padding=1),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.BatchNorm2d(WIDTH),
        )

    def make_head(self, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, num_outputs))


def own(kind: type[nn.Module]) -> Network:
    torch.manual_seed(0)
    network = kind().train()
    with torch.no_grad():
        network(2 * images(64) + 1)
    return as_network(network.eval(), CLASSES)


def convolution_of(network: Network) -> nn.Module:
    inner: Any = network.without_branches
    return inner.stages[0][0] if isinstance(inner, StagedBackbone) else inner.network.conv


# Functions that let the weight of a convolution be computed in every forward pass
COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "parametrized": parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("kind", [Plain, Staged])
@pytest.mark.parametrize("computed", COMPUTED)
def test_teacher_with_computed_weight_teaches_with_the_weight_used_now(computed: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    teacher = own(kind)
    COMPUTED[computed](convolution_of(teacher))
    with torch.no_grad():
        teacher(images())  # computes the weight
        source = "parametrizations.weight.original0" if computed == "parametrized" else ""
        names = dict(convolution_of(teacher).named_parameters())
        changed = source or next(name for name in ("weight_g", "weight_orig") if name in names)
        names[changed].mul_(torch.linspace(0.2, 3, WIDTH).view(-1, 1, 1, 1))
        if computed == "spectral_norm":
            convolution_of(teacher).weight_u.copy_(torch.randn(WIDTH).sign() / WIDTH**0.5)
        folded = Folded(teacher)
        found = folded(images())
        assert_equal_outputs(found, teacher.outputs(images()))
        names[changed].mul_(torch.linspace(3, 0.2, WIDTH).view(-1, 1, 1, 1))
        assert_equal_outputs(folded(images()), teacher.outputs(images()))


def meddled(network: Network, way: str) -> Callable[[], None]:
    """Return a function that changes a network's weights, as callbacks of users do."""

    def change() -> None:
        with torch.no_grad():
            if way == "loaded":
                network.load_state_dict({name: 0.5 * tensor for name, tensor in network.state_dict().items()})
            elif way == "averaged":
                for parameter in network.parameters():
                    parameter.lerp_(torch.ones_like(parameter), 0.1)
            elif way == "assigned":
                for parameter in network.parameters():
                    parameter.data = parameter.data * 0.5
            else:
                convolution_of(network).register_forward_hook(lambda layer, inputs, output: 0.5 * output)

    return change


@pytest.mark.parametrize("kind", [Plain, Staged])
@pytest.mark.parametrize("way", ["loaded", "averaged", "assigned", "hooked"])
def test_teacher_that_changes_during_the_fit_teaches_with_its_new_weights(way: str, kind: type[nn.Module]) -> None:
    def losses(fast: bool) -> list[float]:
        teacher = own(kind)
        torch.manual_seed(0)
        module = KDModule(create_network("resnet8", CLASSES), teacher, num_classes=CLASSES, fast=fast)
        kept = Losses()

        class Change(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx == 1:
                    change()

        change = meddled(teacher, way)
        torch.manual_seed(0)
        trainer(callbacks=[Change(), kept], limit_val_batches=0).fit(module, loader())
        return kept.values

    assert losses(fast=True) == pytest.approx(losses(fast=False), rel=1e-4)


class Recording:
    """Keep what a layer returns, in an attribute of this object."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.rows.append(len(output))

    def called(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.rows.append(len(output))


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda layer: layer.register_forward_hook(lambda layer, inputs, output: output.clamp(min=0)),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],)),
    "forward hook of kwargs": lambda layer: layer.register_forward_hook(
        lambda layer, inputs, kwargs, output: output.square(), with_kwargs=True
    ),
    "replaced forward": lambda layer: setattr(layer, "forward", lambda maps: type(layer).forward(layer, maps).abs()),
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("place", ["convolution", "norm"])
@pytest.mark.parametrize("hook", HOOKS)
def test_layer_that_does_more_than_its_class_is_not_folded(hook: str, place: str) -> None:
    network = own(Staged)
    stage: Any = network.without_branches.stages[0]  # type: ignore[union-attr]
    HOOKS[hook](stage[0] if place == "convolution" else stage[1])
    with torch.no_grad(), Folded(network) as folded:
        assert_equal_outputs(folded(images()), network.outputs(images()))


@pytest.mark.usefixtures("threads")
def test_hook_on_one_layer_leaves_the_others_folded() -> None:
    network = own(Staged)
    network.without_branches.stages[0][0].register_forward_hook(lambda layer, inputs, output: output.clamp(min=0))
    folded = Folded(network)
    assert norms(network) == 2 and norms(folded.network) == 1


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("observed", [Recording(), Recording().called])
def test_hook_on_teacher_sees_the_whole_batch(observed: Any) -> None:
    teacher = own(Staged)
    teacher.without_branches.stages[0][1].register_forward_hook(observed)
    rows = getattr(observed, "__self__", observed).rows
    rows.clear()
    module = KDModule(create_network("resnet8", CLASSES), teacher, num_classes=CLASSES)
    trainer(limit_val_batches=0).fit(module, loader())
    assert rows == [2, 2]


class BatchStatistics(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH, track_running_stats=False)


class Centred(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0))


class Attending(Plain):
    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return (logits @ logits.T).softmax(1) @ logits


class StagedBatchStatistics(Staged):
    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        layers: Any = super().make_stage(stage, in_channels, stride)
        layers[1] = nn.BatchNorm2d(WIDTH, track_running_stats=False)
        return layers


class SharedNorm(Staged):
    """A norm whose second use nothing but the whole network shows."""

    def forward_features(self, images: Tensor) -> list[Tensor]:
        [features] = super().forward_features(images)
        return [self.stages[0][1](features)] if images.shape[-1] > 1 else [features]


class WeightUsedTwice(Staged):
    def forward_features(self, images: Tensor) -> list[Tensor]:
        [features] = super().forward_features(images)
        return [nn.functional.conv2d(features, self.stages[0][3].weight, padding=1)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "kind", [BatchStatistics, Centred, Attending, StagedBatchStatistics, SharedNorm, WeightUsedTwice]
)
@pytest.mark.parametrize("count", [2, 12, 65])
def test_teacher_answers_equally_for_any_number_of_threads_and_images(kind: type[nn.Module], count: int) -> None:
    network = own(kind)
    with torch.no_grad(), Folded(network) as folded:
        for _ in range(2):
            assert_equal_outputs(folded(images(count)), network.outputs(images(count)))


class Noisy(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(images), 0.5)


@pytest.mark.usefixtures("threads")
def test_random_teacher_draws_the_same_numbers() -> None:
    network = own(Noisy)
    with torch.no_grad(), Folded(network) as folded:
        for seed in range(3):
            torch.manual_seed(seed)
            found = folded(images())
            after = torch.rand(1)
            torch.manual_seed(seed)
            assert_equal_outputs(found, network.outputs(images()))
            assert torch.equal(torch.rand(1), after)


class Centring(Plain):
    """Subtract an average over all images seen so far, those of evaluations included."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        self.average.lerp_(images.detach().mean((0, 2, 3))[:, None, None], 0.5)
        return super().forward(images - self.average)


class Reassigning(Centring):
    def forward(self, images: Tensor) -> Tensor:
        self.average = 0.5 * self.average + images.detach().mean((0, 2, 3))[:, None, None]
        return Plain.forward(self, images - self.average)


class Growing(Centring):
    def forward(self, images: Tensor) -> Tensor:
        self.average += 0.1
        return Plain.forward(self, images * self.average)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", [Centring, Reassigning, Growing])
def test_teacher_whose_buffers_change_in_every_call_answers_as_without_fast(kind: type[nn.Module]) -> None:
    network, same = own(kind), own(kind)
    with torch.no_grad(), Folded(network) as folded:
        for _ in range(3):
            assert_equal_outputs(folded(images()), same.outputs(images()))


class Checkpointed(nn.Module):
    """Keep no maps for the backward pass, but compute them again."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        layers = [nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        if self.way == "sequence":
            maps = checkpoint_sequential(self.body, 2, images, use_reentrant=False)
        else:
            maps = checkpoint(self.body, images.requires_grad_(), use_reentrant=self.way == "reentrant")
        return self.fc(maps.mean((2, 3)))


@pytest.mark.parametrize("way", ["not reentrant", "reentrant", "sequence"])
def test_norms_that_are_computed_again_have_the_same_statistics(way: str) -> None:
    def statistics(fast: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        student = Checkpointed(way)
        module = KDModule(student, create_network("resnet8", CLASSES), num_classes=CLASSES, fast=fast)
        trainer(limit_val_batches=0).fit(module, loader())
        return dict(student.named_buffers())

    torch.testing.assert_close(statistics(fast=True), statistics(fast=False), rtol=1e-4, atol=1e-5)


class InPlace(StagedBackbone):
    """Two stages whose first layer, or whose head, changes the map that it is given in place."""

    def __init__(self, where: str) -> None:
        self.where = where
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), (8, 16, 32), (1, 2, 2), num_classes=CLASSES)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        first = nn.ReLU(inplace=self.where in ("every stage", f"stage {stage}"))
        return nn.Sequential(first, nn.Conv2d(in_channels, self.channels[stage], 3, stride, padding=1))

    def make_head(self, num_outputs: int) -> nn.Module:
        first = nn.ReLU(inplace=self.where == "head")
        return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_outputs))


@pytest.mark.parametrize(
    ("where", "stage"), [("every stage", 1), ("stage 2", 1), ("head", 2), ("stage 1", None), ("nowhere", None)]
)
def test_maps_that_later_layers_change_in_place_are_not_distilled(where: str, stage: int | None) -> None:
    for student, teacher in ((InPlace(where), InPlace("nowhere")), (InPlace("nowhere"), InPlace(where))):
        with nullcontext() if stage is None else pytest.raises(UsageError, match=f"stage {stage} of InPlace changes"):
            FitNetModule(student, teacher, num_classes=CLASSES, image_size=8)
