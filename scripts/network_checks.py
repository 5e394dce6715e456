"""Check what the package makes of a network, against the network itself, called without the package.

Each check returns nothing, raises UsageError (refused in one sentence), or raises :class:`DifferenceError`: the package
answers, trains or exports something else. Any other exception is a traceback that a user would see.
"""

import copy
import runpy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import HSAKDModule, StudentModule, create_network, export_student, load_student, load_weights
from hsakd_pl.data import Description
from hsakd_pl.export import student_from_checkpoint
from hsakd_pl.methods import FitNetModule, KDModule
from hsakd_pl.networks import HSAKDNet, Network, StagedBackbone, as_network
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.ops import total

REPOSITORY = Path(__file__).resolve().parents[1]
OWN: dict[str, Callable[[], nn.Module]] = runpy.run_path(str(REPOSITORY / "tests" / "own_networks.py"))["OWN"]
CLASSES = 4
SIDES = (32, 64, 224)
IMAGES = {32: 4, 64: 4, 224: 2}  # in a batch, by side
SEED = 7
LR = 0.05
CLOSE = 1e-3  # of the largest logit, and of a step's length: what another order of summation may change
ROUNDING = 1e-6  # relative change of all weights that shows how much a network magnifies rounding
MAGNIFIED = 20  # times the effect of ROUNDING that a step may differ by
DESCRIPTION = Description(["ant", "bee", "cow", "dog"], 32, 32, (0.5,) * 3, (0.25,) * 3)
# With auxiliary logits, which only the initial weights of scipy take long
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


class DifferenceError(Exception):
    """The package does something else than the network itself, without a word."""


class Subject(NamedTuple):
    """Hold a network to check.

    Args:
        kind: ``timm``, ``torchvision`` or ``own``.
        name: name in its library, or in ``tests/own_networks.py``.
    """

    kind: str
    name: str

    def model_name(self, side: int) -> str:
        """Return the name by which the package creates a timm model for images of a side."""
        import timm

        config = timm.get_pretrained_cfg(self.name)
        other = config is not None and config.fixed_input_size and config.input_size[-1] != side
        return f"timm:{self.name}@{side}" if other else f"timm:{self.name}"

    def original(self, side: int) -> nn.Module:
        """Return the network as its library makes it, with statistics of norms that are not those of fresh ones."""
        torch.manual_seed(SEED)
        if self.kind == "own":
            network = OWN[self.name]()
        elif self.kind == "torchvision":
            options = TORCHVISION_OPTIONS.get(self.name, {})
            network = torchvision.models.get_model(self.name, weights=None, num_classes=CLASSES, **options)
        else:
            import timm

            options = {"img_size": side} if "@" in self.model_name(side) else {}
            network = timm.create_model(self.name, num_classes=CLASSES, **options)
        return stirred(network)

    def network(self, side: int, branches: bool = False) -> Network:
        """Return the network as the package makes it, with the weights of the original."""
        if self.kind != "timm":
            original = self.original(side)
            return (
                HSAKDNet(original)
                if branches and isinstance(original, StagedBackbone)
                else as_network(original, CLASSES)
            )
        torch.manual_seed(SEED)
        network = create_network(self.model_name(side), CLASSES, branches)
        return load_weights(network, self.original(side).state_dict())


@torch.no_grad()
def stirred(network: nn.Module) -> nn.Module:
    """Move statistics and weights of norms away from zeros and ones, so that leaving one out shows; return it."""
    generator = torch.Generator().manual_seed(SEED)
    for layer in network.modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            continue
        for tensor in (layer.weight, layer.running_var):
            if tensor is not None:
                tensor.uniform_(0.8, 1.2, generator=generator)
        for tensor in (layer.bias, layer.running_mean):
            if tensor is not None:
                tensor.normal_(0, 0.1, generator=generator)
    return network


class Images(pl.LightningDataModule):
    """One batch of random images of a side."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.image_size = side
        self.num_classes = CLASSES
        count = IMAGES.get(side, 2)
        self.images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(count) % CLASSES

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=len(self.images))


class Observed(pl.Callback):
    """Seed the step, and keep its loss and what the teacher, as the fit uses it, answers."""

    loss = float("nan")
    answers: Tensor | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        for teacher in module.teachers:
            self.answers = teacher(batch[0]).logits
        torch.manual_seed(SEED)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *rest: Any) -> None:
        self.loss = float(outputs["loss"])


def fit(module: HSAKDModule, data: Images, checkpoint: Path | None = None) -> Observed:
    """Train a module for one step, as users do; return what was observed."""
    observed = Observed()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[observed],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    if checkpoint is not None:
        trainer.save_checkpoint(checkpoint)
    return observed


# The same without the package


def kd_step(student: nn.Module, teacher: nn.Module, data: Images) -> float:
    """Train a network for one step of KD (0.1 CE + 0.9 KD at T = 4, SGD) in plain PyTorch; return the loss."""
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    torch.manual_seed(SEED)
    logits = student.train()(data.images.clone())
    with torch.no_grad():
        answers = teacher.eval()(data.images.clone())
    divergence = F.kl_div((logits / 4).log_softmax(1), (answers / 4).softmax(1), reduction="batchmean")
    loss = 0.1 * F.cross_entropy(logits, data.labels) + 0.9 * 16 * divergence
    loss.backward()
    optimizer.step()
    return float(loss)


def partner() -> Network:
    """Return the package's network that the others teach, and that teaches them."""
    torch.manual_seed(SEED + 1)
    return create_network("resnet8", CLASSES, branches=False)


def same(what: str, found: Any, expected: Any, tolerance: float = CLOSE) -> None:
    """Raise DifferenceError unless two tensors or numbers are equal up to a part of the largest."""
    found, expected = (torch.as_tensor(value).detach() for value in (found, expected))
    largest = float(expected.abs().max())
    if not torch.allclose(found.to(expected.dtype), expected, rtol=0, atol=tolerance * largest + 1e-6):
        difference = float((found - expected).abs().max())
        raise DifferenceError(f"{what} differ by {difference:.1e}, the largest is {largest:.1e}")


def distance(found: dict[str, Tensor], expected: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Return how far two steps are from each other, relative to the length of the expected one."""
    apart = length = 0.0
    for name, tensor in expected.items():
        if tensor.is_floating_point() or tensor.is_complex():
            apart += float((found[name] - tensor).abs().double().square().sum())
            length += float((tensor - before[name]).abs().double().square().sum())
    return (apart / max(length, 1e-30)) ** 0.5


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def magnified(
    subject: Subject, side: int, data: Images, expected: dict[str, Tensor], loss: float
) -> tuple[float, float]:
    """Return by how much a step and its loss change if all weights do by ``ROUNDING``."""
    network = subject.original(side)
    generator = torch.Generator().manual_seed(SEED)
    before = parameters_of(network)
    noise = {}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise[name] = ROUNDING * parameter * torch.randn(parameter.shape, generator=generator)
            parameter += noise[name]
    other_loss = kd_step(network, partner(), data)
    other = {name: parameter - noise[name] for name, parameter in parameters_of(network).items()}
    return distance(other, expected, before), abs(other_loss - loss)


def disable_dropout(*networks: nn.Module) -> None:
    """Let dropout layers keep all values: which ones they drop depends on the layout of the maps."""
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd):
                layer.p = 0.0


# The checks


def check_create(subject: Subject, side: int) -> None:
    """Compare the number of parameters with the original's."""
    network = subject.network(side)
    expected = sum(parameter.numel() for parameter in subject.original(side).parameters())
    found = sum(parameter.numel() for parameter in network.parameters())
    if found != expected:
        raise DifferenceError(f"{found} parameters, the original has {expected}")


@torch.no_grad()
def check_logits(subject: Subject, side: int) -> None:
    """Compare logits in eval mode."""
    images = Images(side).images
    network = subject.network(side).eval()
    network.check_image_size(side, side)  # as a fit does first
    found = network(images.clone())
    same("logits", found, subject.original(side).eval()(images.clone()), 1e-5)


def check_student(subject: Subject, side: int) -> None:
    """Compare the loss and the weights after one step of KD."""
    try:
        _compare_student(subject, side, dropout=True)
    except DifferenceError:
        _compare_student(subject, side, dropout=False)


def _compare_student(subject: Subject, side: int, dropout: bool) -> None:
    data = Images(side)
    module = KDModule(subject.network(side), partner(), num_classes=CLASSES, lr=LR, image_size=side)
    original = subject.original(side)
    if not dropout:
        disable_dropout(module.network, original)
    before = parameters_of(original)
    loss = fit(module, data).loss
    expected_loss = kd_step(original, partner(), data)
    found = dict(zip(before, trained_parameters(module.network, before), strict=True))
    expected = parameters_of(original)
    apart = distance(found, expected, before)
    if apart <= 10 * CLOSE and abs(loss - expected_loss) <= CLOSE * abs(expected_loss):
        return
    step, changed_loss = magnified(subject, side, data, expected, expected_loss)
    if apart > max(10 * CLOSE, MAGNIFIED * step):
        raise DifferenceError(f"the step of the weights differs by {apart:.1e} of its length ({step:.1e} by rounding)")
    if abs(loss - expected_loss) > max(CLOSE * abs(expected_loss), MAGNIFIED * changed_loss):
        raise DifferenceError(f"the loss is {loss:.6f}, the original's {expected_loss:.6f}")


def trained_parameters(network: Network, original: dict[str, Tensor]) -> list[Tensor]:
    """Return the parameters of the package's network in the order of the original's."""
    from hsakd_pl import published_state_dict

    published = published_state_dict(network)
    named = {name.removeprefix("network."): parameter for name, parameter in network.named_parameters()}
    return [(named[name] if name in named else published[name]).detach() for name in original]


def check_teacher(subject: Subject, side: int) -> None:
    """Compare what the network teaches in a step of KD, and check that it stays as it is."""
    data = Images(side)
    teacher = subject.network(side)
    module = KDModule(partner(), teacher, num_classes=CLASSES, lr=LR, image_size=side)
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    observed = fit(module, data)
    original = subject.original(side)
    with torch.no_grad():
        expected = original.eval()(data.images.clone())
    same("the teacher's logits", observed.answers, expected)
    same("losses", observed.loss, kd_step(partner(), original, data))
    changed = [name for name, tensor in teacher.state_dict().items() if not torch.equal(tensor, state[name])]
    if changed:
        raise DifferenceError(f"the teacher's {changed[0]} changed")


def check_feature(subject: Subject, side: int) -> None:
    """Compare a step of FitNet between two such networks with the losses that it has without ``fast``."""
    student, teacher = subject.network(side), subject.network(side)
    if student.without_branches is teacher.without_branches:
        teacher = copy.deepcopy(teacher)
    _compare_with_plain(FitNetModule(student, teacher, num_classes=CLASSES, lr=LR, image_size=side), side)


def check_hsakd(subject: Subject, side: int) -> None:
    """Compare a step of HSAKD from a teacher of as many branches with the losses that it has without ``fast``."""
    student = subject.network(side, branches=True)
    teacher = create_network("timm:lcnet_050" if len(student.branches) == 4 else "resnet8", CLASSES)
    _compare_with_plain(StudentModule(student, teacher, num_classes=CLASSES, lr=LR), side)


def _compare_with_plain(module: HSAKDModule, side: int) -> None:
    for network in module.networks:
        network.check_image_size(side, side)
    state = copy.deepcopy(module.state_dict())
    try:
        _compare_losses(module, Images(side), state)
    except DifferenceError:
        disable_dropout(*module.networks)
        _compare_losses(module, Images(side), state)


def _compare_losses(module: HSAKDModule, data: Images, state: dict[str, Any]) -> None:
    """Compare the loss of a fit's first step with the sum of the terms outside of it, both from a state."""
    module.load_state_dict(state)
    module.train()
    torch.manual_seed(SEED)
    terms = module.losses((data.images, data.labels))
    expected = float(total(module.loss_weight(name) * term for name, term in terms.items()))
    module.load_state_dict(state)
    loss = fit(module, data).loss
    if abs(loss - expected) > 10 * CLOSE * abs(expected):
        raise DifferenceError(f"the loss is {loss:.6f} with fast, {expected:.6f} without")


def check_export(subject: Subject, side: int) -> None:
    """Train a step, export to three formats, and compare all of them with the trained network on other images."""
    data = Images(side)
    module = KDModule(subject.network(side), partner(), num_classes=CLASSES, lr=0.001, image_size=side)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit(module, data, folder / "last.ckpt")
        description = Description(DESCRIPTION.class_names, side, side, DESCRIPTION.mean, DESCRIPTION.std)
        fresh = None if subject.kind == "timm" else partial(subject.original, side)
        formats = ("safetensors", "pt2", "onnx")
        network = fresh() if fresh else subject.model_name(side)
        export = export_student(folder / "last.ckpt", folder / "out", formats, network, description)
        images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = module.network.eval()((images - 0.5) / 0.25)
            repeated = module.network((images - 0.5) / 0.25)
        for file in export.files if torch.equal(expected, repeated) else ():
            found = run_exported(
                folder / "out" / file.path.name, images, fresh() if fresh else subject.model_name(side)
            )
            same(f"logits of {file.path.name}", found, expected)
        reread = student_from_checkpoint(folder / "last.ckpt", fresh() if fresh else network, description)
        if reread.network.state_dict().keys() != module.network.without_branches.state_dict().keys():
            raise DifferenceError("the checkpoint has other weights than the network")
        if export.left_out:
            from hsakd_pl.errors import UsageError

            raise UsageError(export.left_out[0])


@torch.no_grad()
def run_exported(path: Path, images: Tensor, network: Any) -> Tensor:
    """Return the logits of an exported file."""
    if path.suffix == ".safetensors":
        return load_student(path.parent, network)(images)
    if path.suffix == ".pt2":
        logits: Tensor = torch.export.load(path).module()(images)
        return logits
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


class Products(TorchDispatchMode):
    """Count multiply-adds from the shapes that matrix products, convolutions, attention and LSTMs are called with.

    Independent of PyTorch's counter: fused attention and recurrence are counted where they are called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name in ("mm", "bmm"):
            self.count += args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.count += args[1].numel() * args[2].shape[-1]
        elif name == "convolution":
            transposed = args[6]
            self.count += (args[0] if transposed else output).numel() * args[1][0].numel()
        elif name.startswith("_scaled_dot_product"):
            query, key, value = args[:3]
            products = (
                query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1]
            )
            self.count += products
        elif name == "mkldnn_rnn_layer":
            inputs, *weights = args[:3]
            self.count += inputs[..., 0].numel() * sum(weight.numel() for weight in weights)
        return output


@torch.no_grad()
def check_count(subject: Subject, side: int) -> None:
    """Compare the multiply-adds with those that the original's calls show."""
    found = multiply_adds(subject.network(side), side)
    original = subject.original(side).eval()  # whose constructor may call parts of it
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with Products() as products:
            original(torch.zeros(1, 3, side, side))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if found != products.count:
        raise DifferenceError(f"{found} multiply-adds, the original's calls have {products.count}")


CHECKS: dict[str, Callable[[Subject, int], None]] = {
    "create": check_create,
    "logits": check_logits,
    "student": check_student,
    "teacher": check_teacher,
    "feature": check_feature,
    "hsakd": check_hsakd,
    "count": check_count,
    "export": check_export,
}
