"""Test that networks of users' own code train, distil and are measured like the package's own."""

import copy
import queue
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
import torchvision
from small import BATCH, CLASSES, Losses, loader, trainer
from torch import Tensor

from hsakd_pl import (
    BaselineModule,
    LinearProbeModule,
    StudentModule,
    create_network,
    export_student,
    load_student,
    load_weights,
)
from hsakd_pl.data import Description
from hsakd_pl.errors import UsageError
from hsakd_pl.export import student_from_checkpoint
from hsakd_pl.export.student import Student
from hsakd_pl.fast.layout import networks_kept_contiguous
from hsakd_pl.methods import FitNetModule, KDModule
from hsakd_pl.networks import HSAKDNet, Network, StagedBackbone, as_network
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.networks.network import Classifier

DESCRIPTION = Description(["ant", "bee", "cow", "dog"], 8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Flattened(nn.Module):
    """Flatten maps by ``view``, as most code of before 2020 does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(8 * 4 * 4, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        return self.classifier(features.view(features.size(0), -1))


class Viewed(nn.Module):
    """Flatten maps by ``view`` in training steps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        if self.training:
            return self.fc(features.view(len(images), -1))
        return self.fc(features.flatten(1))


class Volumes(nn.Module):
    """Take an image as a volume of depth 3: the weight of its convolution has five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images[:, None]).relu().mean((2, 3, 4)))


class Strided(nn.Module):
    """Read the memory of its maps, so that another layout gives other logits without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return self.fc(features.as_strided((len(images), 8 * 8 * 8), (8 * 8 * 8, 1)))


class Wide(nn.Module):
    """Flatten the maps of a convolution that the package's kernels compute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 8 * 8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv2(self.norm(self.conv(images)).relu())
        return self.fc(features.view(len(images), -1))


LAYOUTS: list[type[nn.Module]] = [Flattened, Viewed, Volumes, Strided, Wide]


def fitted(module: pl.LightningModule, **options: Any) -> list[float]:
    """Return the losses of a fit of two steps."""
    losses = Losses()
    images = BATCH[0].repeat(16, 1, 1, 1)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, BATCH[1].repeat(16)), batch_size=len(images) // 2
    )
    torch.manual_seed(0)
    trainer(callbacks=[losses], **options).fit(module, batches, batches)
    return losses.values


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("network", LAYOUTS)
def test_network_that_needs_contiguous_maps_trains_and_teaches(network: type[nn.Module], role: str) -> None:
    def losses(fast: bool) -> list[float]:
        torch.manual_seed(1)
        if role == "student":
            return fitted(BaselineModule(network(), num_classes=CLASSES, fast=fast))
        student = create_network("resnet8", CLASSES, branches=False)
        return fitted(StudentModule(student, network(), num_classes=CLASSES, joint_kd_weight=0, fast=fast))

    assert losses(fast=True) == pytest.approx(losses(fast=False), rel=1e-5)


def parts(**layers: nn.Module) -> type[nn.Module]:
    """Return a class of networks that consist of named layers, in this order."""

    class Own(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, copy.deepcopy(layer))

    return Own


def pooled(channels: int = 8) -> nn.Sequential:
    """Return layers that map images to embeddings."""
    convolution = nn.Conv2d(3, channels, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Branchless(Network):
    """Derive from Network, and keep another network under the name ``network``."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.network = pooled()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.network(images))


class Wrapped(Branchless):
    """Have weights under ``network`` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(self.network, self.head)
        del self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


NAMES: dict[str, type[nn.Module]] = {
    "features, classifier.1": parts(features=pooled(), classifier=nn.Sequential(nn.Dropout(), nn.Linear(8, CLASSES))),
    "features, classifier": parts(features=pooled(), classifier=nn.Linear(8, CLASSES)),
    "features alone": parts(features=nn.Sequential(pooled(), nn.Linear(8, CLASSES))),
    "backbone, fc": parts(backbone=pooled(), fc=nn.Linear(8, CLASSES)),
    "student, head": parts(student=pooled(), head=nn.Linear(8, CLASSES)),
    "net1, net2": parts(net1=pooled(), net2=nn.Linear(8, CLASSES)),
    "network, head": Branchless,
    "network": Wrapped,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module]]:
    """Train a network of each kind of names, and return its checkpoint and the network in eval mode."""
    trained = {}
    for number, (name, make) in enumerate(NAMES.items()):
        folder = tmp_path_factory.mktemp(f"run{number}")
        module = BaselineModule(make(), num_classes=CLASSES)
        trainer(folder).fit(module, loader())
        trained[name] = folder / "last.ckpt", module.eval().network
    return trained


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_network_with_any_names_is_read_from_its_checkpoint(
    name: str, raw: bool, checkpoints: dict[str, tuple[Path, nn.Module]]
) -> None:
    path, network = checkpoints[name]
    empty = NAMES[name]()
    student = student_from_checkpoint(path, empty if raw else as_network(empty, CLASSES), DESCRIPTION)
    images = BATCH[0]
    assert torch.equal(student.network(images), network(images))


@pytest.mark.parametrize("name", NAMES)
def test_network_with_any_names_takes_its_state_dict(name: str, checkpoints: dict[str, tuple[Path, nn.Module]]) -> None:
    _, network = checkpoints[name]
    inner = network.network if isinstance(network, Classifier) else network
    found = load_weights(NAMES[name](), inner.state_dict()).eval()
    assert torch.equal(found(BATCH[0]), network(BATCH[0]))


@pytest.mark.parametrize("name", ["features, classifier.1", "features, classifier", "backbone, fc"])
def test_probe_of_a_network_with_any_names_is_read_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    probe = LinearProbeModule(NAMES[name](), CLASSES, source_classes=CLASSES)
    trainer(tmp_path).fit(probe, loader())
    student = student_from_checkpoint(tmp_path / "last.ckpt", NAMES[name](), DESCRIPTION)
    torch.testing.assert_close(student.network(BATCH[0]), probe.eval().network(BATCH[0]))


class Staged(StagedBackbone):
    """Have maps and an embedding, and a convolution before a norm that subclasses change."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), (8, 8, 8), (1, 1, 2), CLASSES)

    def make_stage(self, stage: int, in_channels: int, stride: int) -> nn.Module:
        convolution = self.changed(nn.Conv2d(in_channels, 8, 3, stride, padding=1))
        return nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU())

    def make_head(self, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_outputs))

    def changed(self, convolution: nn.Module) -> nn.Module:
        return convolution


class OldWeightNorm(Staged):
    def changed(self, convolution: nn.Module) -> nn.Module:
        return torch.nn.utils.weight_norm(convolution)


class Parametrized(Staged):
    def changed(self, convolution: nn.Module) -> nn.Module:
        return torch.nn.utils.parametrizations.weight_norm(convolution)


class OldSpectralNorm(Staged):
    def changed(self, convolution: nn.Module) -> nn.Module:
        return torch.nn.utils.spectral_norm(convolution)


class Remembering(Staged):
    """Remember the last maps, in a list."""

    def forward_features(self, images: Tensor) -> list[Tensor]:
        self.last = super().forward_features(images)
        return self.last


class Full(Staged):
    """Make a tensor without naming a device."""

    def forward_features(self, images: Tensor) -> list[Tensor]:
        return super().forward_features(images * torch.full((1, 3, 1, 1), 0.5))


class OnCPU(Staged):
    """Make a tensor on the CPU, whatever the device of the images."""

    def forward_features(self, images: Tensor) -> list[Tensor]:
        return super().forward_features(images + torch.arange(3.0, device="cpu")[:, None, None])


class ByValue(Staged):
    """Decide by the values of the images."""

    def forward_features(self, images: Tensor) -> list[Tensor]:
        return super().forward_features(images if float(images.sum()) > 0 else -images)


COPIES: list[type[Staged]] = [OldWeightNorm, Parametrized, OldSpectralNorm, Remembering, Full, OnCPU, ByValue]


@pytest.mark.parametrize("network", COPIES)
def test_network_that_cannot_be_copied_or_moved_distils_its_maps(network: type[Staged]) -> None:
    def losses(fast: bool) -> list[float]:
        torch.manual_seed(1)
        student, teacher = network(), network()
        if network is Remembering:
            student(BATCH[0]), teacher(BATCH[0])
        return fitted(FitNetModule(student, teacher, num_classes=CLASSES, fast=fast))

    assert losses(fast=True) == pytest.approx(losses(fast=False), rel=1e-4)


@pytest.mark.parametrize("network", COPIES)
def test_head_and_multiply_adds_of_a_network_that_cannot_be_copied_are_known(network: type[Staged]) -> None:
    built = network()
    built(BATCH[0])  # in training mode: what it remembers has a history
    assert built.output_layers == [["head.2"]]
    assert multiply_adds(built, 8) == multiply_adds(Staged(), 8)


class Entries(nn.Module):
    """Return outputs of another kind; subclasses say which."""

    def __init__(self) -> None:
        super().__init__()
        self.features = pooled()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Any:
        return self.made(self.fc(self.features(images)))

    def made(self, logits: Tensor) -> Any:
        return {"logits": logits}


class Pair(Entries):
    def made(self, logits: Tensor) -> Any:
        return logits, logits


class ModelOutput(OrderedDict[str, Tensor]):
    pass


class Model(Entries):
    def made(self, logits: Tensor) -> Any:
        return ModelOutput(logits=logits)


class Auxiliary(Entries):
    def made(self, logits: Tensor) -> Any:
        return torchvision.models.GoogLeNetOutputs(logits, logits, logits) if self.training else logits


class OwnNetwork(Network):
    """Derive from Network, and return a dict all the same."""

    def __init__(self) -> None:
        super().__init__(CLASSES)
        self.inner = Entries()

    def forward(self, images: Tensor) -> Any:
        return self.inner(images)


OTHER_OUTPUTS: list[type[nn.Module]] = [Entries, Pair, Model, Auxiliary, OwnNetwork]
ONE_SENTENCE = r"instead of logits \(2, 4\): wrap it in a module that returns its logits alone, by the three lines"


@pytest.mark.parametrize("use", ["fit", "teach", "validate"])
@pytest.mark.parametrize("network", OTHER_OUTPUTS)
def test_other_outputs_than_logits_are_refused_in_one_sentence(network: type[nn.Module], use: str) -> None:
    module = BaselineModule(network(), num_classes=CLASSES)
    if use == "teach":
        module = KDModule("resnet8", network(), num_classes=CLASSES)
    silent = trainer(num_sanity_val_steps=0)
    if network is Auxiliary and use != "fit":
        (silent.validate if use == "validate" else silent.fit)(module, loader())  # it returns logits in eval mode
        return
    with pytest.raises(UsageError, match=ONE_SENTENCE):
        (silent.validate if use == "validate" else silent.fit)(module, loader())


def adapter() -> Any:
    """Return the adapter of docs/your-network.md."""
    page = (Path(__file__).parents[1] / "docs" / "your-network.md").read_text()
    [example] = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class LogitsAlone" in text]
    scope: dict[str, Any] = {}
    exec(example, scope)
    return scope["LogitsAlone"]


@pytest.mark.parametrize("network", [Pair, Auxiliary])
def test_documented_adapter_lets_other_outputs_train(network: type[nn.Module]) -> None:
    module = KDModule(adapter()(network()), adapter()(network()), num_classes=CLASSES)
    losses = Losses()
    trainer(callbacks=[losses]).fit(module, loader(), loader())
    assert len(losses.values) == 2


class Spectrum(nn.Module):
    """Filter the spectrum of an image by complex weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.ones(3, 8, 5, dtype=dtype))
        self.fc = nn.Linear(3 * 8 * 8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.fft.irfft2(torch.fft.rfft2(images) * self.filters).flatten(1))


class Phases(Spectrum):
    """Have a complex weight of four dimensions first."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.filters = nn.Parameter(torch.ones(1, 3, 8, 5, dtype=dtype))


class Rotated(Spectrum):
    """Multiply complex numbers in front of the classifier."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.filters = nn.Parameter(torch.ones(3 * 8 * 8, dtype=dtype))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc((images.flatten(1) * self.filters).abs())


@pytest.mark.parametrize("network", [Spectrum, Phases, Rotated])
def test_network_with_complex_parameters_trains_and_is_saved(network: type[Spectrum], tmp_path: Path) -> None:
    module = BaselineModule(network(torch.complex64), num_classes=CLASSES)
    trainer(tmp_path).fit(module, loader(), loader())
    found = student_from_checkpoint(tmp_path / "last.ckpt", network(torch.complex64), DESCRIPTION)
    assert torch.equal(found.network(BATCH[0]), module.eval().network(BATCH[0]))
    assert module.network.network.filters.ne(1).any()


class FrozenNorms(nn.Module):
    """Keep norms in eval mode, as detectors do: by a ``train`` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = pooled()
        self.fc = nn.Linear(8, CLASSES)

    def train(self, mode: bool = True) -> "FrozenNorms":
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))


class FrozenInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = FrozenNorms()

    def forward(self, images: Tensor) -> Tensor:
        return self.part(images)


@pytest.mark.parametrize("network", [FrozenNorms, FrozenInside])
@pytest.mark.parametrize("fast", [True, False])
def test_network_with_its_own_train_trains_in_the_mode_that_it_chooses(network: type[nn.Module], fast: bool) -> None:
    student = network()
    student.add_module("others", nn.BatchNorm1d(2).eval())  # which a user has frozen
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    trainer(max_epochs=2).fit(BaselineModule(student, num_classes=CLASSES, fast=fast), loader(), loader())
    torch.testing.assert_close(dict(student.named_buffers()), before, rtol=0, atol=0)
    assert student.training and not student.get_submodule("others").training


class Merged(nn.Module):
    """Merge two convolutions into one for evaluations, as RepVGG does, in ``train``; subclasses in ``eval``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, CLASSES)
        self.merged: Tensor | None = None

    def merge(self) -> None:
        self.merged = (self.first.weight + self.second.weight).detach()

    def train(self, mode: bool = True) -> "Merged":
        self.merged = None
        if not mode:
            self.merge()
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        if self.merged is None:
            return self.fc((self.first(images) + self.second(images)).mean((2, 3)))
        bias = self.first.bias + self.second.bias
        return self.fc(nn.functional.conv2d(images, self.merged, bias).mean((2, 3)))


class MergedByEval(Merged):
    def train(self, mode: bool = True) -> "MergedByEval":
        if mode:
            self.merged = None
        return nn.Module.train(self, mode)  # type: ignore[return-value]

    def eval(self) -> "MergedByEval":
        self.merge()
        self.merged *= 2  # type: ignore[operator]
        return super().eval()


class MergedInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Merged()

    def forward(self, images: Tensor) -> Tensor:
        return self.part(images)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("network", [Merged, MergedByEval, MergedInside])
def test_network_with_its_own_modes_learns_after_validations_and_teaches(network: type[nn.Module], fast: bool) -> None:
    torch.manual_seed(0)
    student, teacher = network(), network()
    expected = copy.deepcopy(teacher).eval()(BATCH[0])
    module = KDModule(student, teacher, num_classes=CLASSES, fast=fast)
    torch.testing.assert_close(module.teacher(BATCH[0]).logits, expected)
    steps = []

    class Step(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            steps.append(next(student.parameters()).detach().clone())

    trainer(max_epochs=3, callbacks=[Step()]).fit(module, loader(), loader())
    assert all(not torch.equal(*pair) for pair in pairwise(steps)) and len(steps) == 6
    network_in_module = module.eval().network
    torch.testing.assert_close(network_in_module(BATCH[0]), student.eval()(BATCH[0]))


class Locked(Staged):
    """Have attributes that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.numpy = np
        self.memory = {"numbers": [iter_numbers()]}

    def forward_features(self, images: Tensor) -> list[Tensor]:
        with self.lock:
            return super().forward_features(images)


class Observing(Staged):
    """Have a hook of an object that cannot be copied, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.events: queue.Queue[int] = queue.Queue()
        self.calls = 0
        self.stem.register_forward_hook(partial(put, self.events))
        self.stages[0].register_forward_hook(self.count)

    def count(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.calls += 1


def put(events: "queue.Queue[int]", layer: nn.Module, inputs: Any, output: Tensor) -> None:
    events.put(len(output))


def iter_numbers() -> Iterator[int]:
    yield 1


class Iterating(Staged):
    """Have an iterator over numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter_numbers()


@pytest.mark.parametrize("network", [Locked, Observing, Iterating])
def test_network_with_attributes_that_cannot_be_copied_trains_is_measured_and_read(
    network: type[Staged], tmp_path: Path
) -> None:
    def losses(fast: bool) -> list[float]:
        torch.manual_seed(1)
        module = FitNetModule(network(), network(), num_classes=CLASSES, fast=fast)
        return fitted(module)

    assert losses(fast=True) == pytest.approx(losses(fast=False), rel=1e-4)
    built = network()
    assert multiply_adds(built, 8) == multiply_adds(Staged(), 8) and built.output_layers == [["head.2"]]
    assert getattr(built, "calls", 0) == 0  # a copy has its own
    torch.save(built.state_dict(), tmp_path / "weights.pth")
    assert student_from_checkpoint(tmp_path / "weights.pth", network(), DESCRIPTION)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(CLASSES))


def exported() -> nn.Module:
    return torch.export.export(Flattened().eval(), (BATCH[0],)).module()


UNUSABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "lazy": (lazy, r"Sequential has 4 weights whose shapes its first images decide \(0\.weight, 0\.bias, .*call it"),
    "lazy norm": (lambda: nn.Sequential(lazy(), nn.LazyBatchNorm1d()), "has 8 weights whose shapes"),
    "exported": (
        exported,
        r"GraphModule cannot be put in train and eval mode \(NotImplementedError: .*pass the module",
    ),
}


ROLES: dict[str, Callable[[nn.Module], Any]] = {
    "student": lambda network: KDModule(network, "resnet8", teacher_weights="random", num_classes=CLASSES),
    "teacher": lambda network: KDModule("resnet8", network, num_classes=CLASSES),
    "probe": lambda network: LinearProbeModule(network, CLASSES, source_classes=CLASSES),
    "measured": lambda network: multiply_adds(as_network(network, CLASSES), 8),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", UNUSABLE)
def test_network_that_cannot_be_used_yet_is_refused_in_one_sentence(kind: str, role: str) -> None:
    make, sentence = UNUSABLE[kind]
    network = make()
    with pytest.raises(UsageError, match=sentence) as error:
        ROLES[role](network)
    assert "\n" not in str(error.value)


def test_lazy_network_that_has_seen_images_teaches_and_learns() -> None:
    networks = [lazy(), lazy()]
    for network in networks:
        network(BATCH[0])
    assert len(fitted(KDModule(*networks, num_classes=CLASSES))) == 2


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(pooled(), nn.Linear(8, CLASSES)))


@pytest.mark.parametrize("make", [scripted, lambda: torch.jit.trace(scripted(), BATCH[0])])
def test_scripted_network_distils_logits_and_says_that_it_has_no_maps(make: Callable[[], nn.Module]) -> None:
    assert len(fitted(KDModule(make(), make(), num_classes=CLASSES))) == 2
    with pytest.raises(UsageError, match="returns no features to distill"):
        FitNetModule(make(), make(), num_classes=CLASSES, image_size=8)


class OtherNames(Staged):
    """Name the arguments of the methods otherwise."""

    def make_stage(self, number: int, inputs: int, step: int) -> nn.Module:  # type: ignore[override]
        return super().make_stage(number, inputs, step)


def test_stages_with_arguments_of_other_names_get_branches() -> None:
    module = StudentModule(HSAKDNet(OtherNames()), HSAKDNet(OtherNames()), num_classes=CLASSES)
    assert len(fitted(module)) == 2


class Masked(nn.Module):
    """Keep infinite numbers, or something other than tensors, next to the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True)
        self.fc = nn.Linear(8, CLASSES)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(16))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.fc(self.layer(tokens, src_mask=self.mask)[:, -1])


class Best(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("best", torch.tensor(float("inf")))
        self.register_buffer("unknown", torch.full((2,), float("nan")))


class Stateful(Masked):
    """Save a dictionary in the state dict."""

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": 3}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("network", [Masked, Best, Stateful])
def test_network_with_other_numbers_than_weights_is_saved_resumed_and_read(
    network: type[nn.Module], tmp_path: Path
) -> None:
    module = KDModule(network(), network(), num_classes=CLASSES)
    trainer(tmp_path).fit(module, loader(), loader())
    path = tmp_path / "last.ckpt"
    student = student_from_checkpoint(path, network(), DESCRIPTION)
    torch.testing.assert_close(student.network(BATCH[0]), module.eval().network(BATCH[0]))
    trainer(max_epochs=2).fit(KDModule(network(), network(), num_classes=CLASSES), loader(), ckpt_path=path)
    load_weights(network(), path)
    export_student(path, tmp_path / "out", ("safetensors", "pt2"), network(), DESCRIPTION)
    torch.testing.assert_close(load_student(tmp_path / "out", network())(BATCH[0]), student(BATCH[0]))


def test_weights_that_became_infinite_are_neither_saved_nor_read() -> None:
    network = Best()
    module = BaselineModule(network, num_classes=CLASSES)
    network.embed.bias.data[0] = float("inf")
    with pytest.raises(UsageError, match=r"embed\.bias is NaN or infinite"):
        load_weights(Best(), network.state_dict())
    with pytest.raises(UsageError, match="the loss became NaN or infinite"):
        module.on_save_checkpoint({"state_dict": module.state_dict()})


def by_closure() -> nn.Module:
    network = nn.Module()
    network.features, network.fc = pooled(), nn.Linear(8, CLASSES)
    network.forward = lambda images: network.fc(network.features(images))
    return network


class ByFunction(nn.Module):
    """Keep a function that uses the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = pooled()
        self.fc = nn.Linear(8, CLASSES)
        self.compute = lambda images: self.fc(self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(images)


HIDDEN: list[nn.Module] = []


class Hidden(nn.Module):
    """Use layers that are found elsewhere, even by a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.features = pooled()
        self.fc = nn.Linear(8, CLASSES)
        HIDDEN[:] = [self]

    def forward(self, images: Tensor) -> Tensor:
        [network] = HIDDEN
        return network.fc(network.features(images))


@pytest.mark.parametrize("make", [by_closure, ByFunction, Hidden])
def test_measuring_a_network_whose_copies_use_its_layers_leaves_their_statistics(make: Callable[[], nn.Module]) -> None:
    network = make()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    wrapped = as_network(network, CLASSES)
    wrapped.check_image_size(8, 8)
    assert wrapped.output_layers is not None
    multiply_adds(wrapped, 8)
    networks_kept_contiguous([wrapped], 8)
    student_from_checkpoint_of(network)
    assert network.training
    torch.testing.assert_close(dict(network.named_buffers()), before, rtol=0, atol=0)


def student_from_checkpoint_of(network: nn.Module) -> None:
    Student(network, DESCRIPTION.class_names, 8, 8, DESCRIPTION.mean, DESCRIPTION.std)
    network.train()


class DoubleInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, CLASSES).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).mean((2, 3)).double())


class DoubleWhole(DoubleInside):
    def __init__(self) -> None:
        super().__init__()
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


class HalfInside(DoubleInside):
    def __init__(self) -> None:
        super().__init__()
        self.fc.bfloat16()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).mean((2, 3)).bfloat16())


@pytest.mark.parametrize("network", [DoubleInside, DoubleWhole, HalfInside])
def test_multiply_adds_are_counted_in_the_types_that_a_network_computes_in(network: type[nn.Module]) -> None:
    assert multiply_adds(as_network(network(), CLASSES), 8) == 6 * 6 * 8 * 27 + 8 * CLASSES


class SparseBuffer(nn.Module):
    """Multiply by a sparse matrix, as networks of graphs do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = pooled()
        self.fc = nn.Linear(8, CLASSES)
        self.register_buffer("adjacency", self.made(torch.eye(8)), persistent=False)

    def made(self, matrix: Tensor) -> Tensor:
        return matrix.to_sparse()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc((self.adjacency @ self.features(images).T).T)


class CompressedBuffer(SparseBuffer):
    def made(self, matrix: Tensor) -> Tensor:
        return matrix.to_sparse_csr()


class SavedSparse(SparseBuffer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("saved", torch.eye(3).to_sparse())


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("network", [SparseBuffer, CompressedBuffer, SavedSparse])
def test_network_with_sparse_buffers_learns_and_teaches(network: type[nn.Module], tmp_path: Path) -> None:
    def losses(fast: bool) -> list[float]:
        torch.manual_seed(1)
        return fitted(KDModule(network(), network(), num_classes=CLASSES, fast=fast))

    assert losses(fast=True) == pytest.approx(losses(fast=False), rel=1e-4)
    assert multiply_adds(as_network(network(), CLASSES), 8) > 8 * 8 * 8 * 27
    module = BaselineModule(network(), num_classes=CLASSES)
    trainer(tmp_path).fit(module, loader(), loader())
    assert (tmp_path / "last.ckpt").is_file()


class MadeLater(nn.Module):
    """Make the classifier when the width of the embedding is known."""

    def __init__(self) -> None:
        super().__init__()
        self.features = pooled()
        self.fc: nn.Module | None = None

    def forward(self, images: Tensor) -> Tensor:
        embedding = self.features(images)
        if self.fc is None:
            self.fc = nn.Linear(embedding.shape[1], CLASSES)
        return self.fc(embedding)


@pytest.mark.parametrize("fast", [True, False])
def test_layers_that_the_first_step_makes_are_named_since_no_optimizer_has_them(fast: bool) -> None:
    student = MadeLater()
    module = KDModule(student, create_network("resnet8", CLASSES), num_classes=CLASSES, fast=fast)
    with pytest.raises(UsageError, match=r"2 weights were made .*fc\.weight.* call the network on images before"):
        fitted(module)
    assert len(fitted(KDModule(student, create_network("resnet8", CLASSES), num_classes=CLASSES, fast=fast))) == 2
