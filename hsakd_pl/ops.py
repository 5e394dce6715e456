"""The method as pure functions: transformations, joint labels, class logits and losses (Sec. 3 of the paper).

M transformations make a batch of B images into M * B rows, transformation by transformation: rows 0..B-1 are the images
as they are, so ``rows[:B]`` is the untransformed part, without a copy.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce, wraps
from importlib import import_module
from itertools import permutations
from operator import mul
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")
CHANNEL_ORDERS = tuple(permutations(range(3)))  # the first is the identity


@dataclass(frozen=True)
class Transforms:
    """The M transformations of the self-supervised task; a network with branches owns them.

    Calling them transforms a batch: (B, C, S, S) -> (M * B, C, S, S). ``a * b`` is each of ``a`` after each of ``b``.

    Args:
        count: M, the identity included.
        apply: makes of images (B, C, S, S) and m in 1..M-1 the images under transformation m, of the same shape.
        name: how a configuration names them.
    """

    count: int
    apply: Callable[[Tensor, int], Tensor]
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"transforms: count is {self.count}, it must be at least 1: the identity is one of them")

    def __str__(self) -> str:
        return f"{self.count} {self.name or 'unnamed transforms'}"

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([images, *(self.apply(images, m) for m in range(1, self.count))])

    def __mul__(self, inner: "Transforms") -> "Transforms":
        name = f"{self.name}*{inner.name}" if self.name and inner.name else ""
        return Transforms(self.count * inner.count, _Product(self, inner), name)

    def joint_labels(self, labels: Tensor) -> Tensor:
        """Give the joint labels ``M * y + m`` of the rows: (B,) in N classes -> (M * B,) in M * N."""
        return torch.cat([self.count * labels + m for m in range(self.count)])

    def class_labels(self, labels: Tensor) -> Tensor:
        """Give the class labels of the rows: (B,) -> (M * B,)."""
        return labels.repeat(self.count)

    def class_logits(self, joint_logits: Tensor) -> Tensor:
        """Sum joint logits over the transformations of a class: (rows, M * N) -> (rows, N)."""
        return joint_logits.unflatten(1, (-1, self.count)).sum(-1)

    def view_logits(self, joint_logits: Tensor, views: Sequence[int]) -> Tensor:
        """Take the class logits of the view that a row shows (Lee et al., ICML 2020): (V * B, M * N) -> (V, B, N)."""
        by_class = joint_logits.unflatten(1, (-1, self.count)).unflatten(0, (len(views), -1))
        return torch.stack([by_class[view, ..., m] for view, m in enumerate(views)])

    def by_transform(self, rows: Tensor) -> Tensor:
        """Give each transformation its own dimension: (M * B, ...) -> (M, B, ...)."""
        return rows.unflatten(0, (self.count, -1))


@dataclass(frozen=True)
class _Product:
    """Transformation ``outer.count * inner.count``-fold: ``m = m_outer * inner.count + m_inner``."""

    outer: Transforms
    inner: Transforms

    def __call__(self, images: Tensor, m: int) -> Tensor:
        for transforms, index in ((self.inner, m % self.inner.count), (self.outer, m // self.inner.count)):
            images = transforms.apply(images, index) if index else images
        return images


def _rotate(images: Tensor, m: int) -> Tensor:
    height, width = images.shape[-2:]
    if height != width:
        raise UsageError(f"rotation by 90 degrees needs square images, got {height} x {width}: crop or resize them")
    return torch.rot90(images, m, (2, 3))


def _mirror(images: Tensor, m: int) -> Tensor:
    return images.flip(3) if m else images


def _reorder_channels(images: Tensor, m: int) -> Tensor:
    return torch.stack([images[:, channel] for channel in CHANNEL_ORDERS[m]], dim=1)


ROTATIONS = Transforms(4, _rotate, "rotations")  # counter-clockwise by 0, 90, 180 and 270 degrees, Sec. 3.1
FLIPS = Transforms(2, _mirror, "flips")  # as it is, and left to right
COLOURS = Transforms(len(CHANNEL_ORDERS), _reorder_channels, "colours")  # the orders of red, green and blue


def named_transforms(name: str) -> Transforms:
    """Find transformations by name: ``rotations``, ``flips``, ``colours``, an import path, or a product of these.

    Raises UsageError for a name that leads to none.
    """
    return reduce(mul, (_find(factor.strip()) for factor in name.split("*")))


def _find(name: str) -> Transforms:
    known = {each.name: each for each in (ROTATIONS, FLIPS, COLOURS)}
    path, _, attribute = name.rpartition(".")
    try:
        found = known[name] if name in known else getattr(import_module(path), attribute)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not isinstance(found, Transforms):
        raise UsageError(f"transforms: {name!r} is none of {', '.join(known)}, nor the import path of a Transforms")
    return Transforms(found.count, found.apply, name)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Sum one or more scalars."""
    return torch.stack(list(terms)).sum()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether none holds NaN or infinite numbers; one look at their device for all."""
    floats = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return not floats or bool(torch.stack(floats).all())


def full_precision(function: Callable[Inputs, Result]) -> Callable[Inputs, Result]:
    """Let a loss compute outside of autocast, half precision tensors among its arguments brought to float32.

    The first argument is a tensor, or some.
    """

    @wraps(function)
    def computed(*arguments: Inputs.args, **options: Inputs.kwargs) -> Result:
        first: Any = [*arguments, *options.values()][0]
        device = (first if isinstance(first, Tensor) else first[0]).device.type
        with torch.autocast(device, enabled=False):
            wide = {name: _widened(value) for name, value in options.items()}
            return function(*map(_widened, arguments), **wide)  # type: ignore[arg-type]

    return computed


def _widened(value: Any) -> Any:
    if type(value) in (list, tuple):
        return [_widened(each) for each in value]
    return _full_precision(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def _full_precision(logits: Tensor) -> Tensor:
    """Bring half precision to float32: dividing bfloat16 logits by 3 costs a tenth of the gradient."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the cross-entropy over the rows: (rows, K) and (rows,) in K -> a scalar."""
    return F.cross_entropy(_full_precision(logits), labels)


def joint_cross_entropy(joint_logits: Sequence[Tensor], joint_labels: Tensor) -> Tensor:
    """Sum the cross-entropy over the branches: L tensors (M * B, M * N) and (M * B,) -> a scalar, Eq. 3."""
    branches = len(joint_logits)
    return branches * cross_entropy(torch.cat(tuple(joint_logits)), joint_labels.repeat(branches))


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Average ``KL(student || teacher)`` at a temperature over the rows, times ``temperature ** 2``.

    Both (rows, K), or (L, rows, K) for the sum of L such losses; no gradient reaches ``teacher_logits``. Eq. 5 and 6 of
    the paper, after Hinton et al. 2015.
    """
    divergence = F.kl_div(
        F.log_softmax(_full_precision(student_logits) / temperature, dim=-1),
        F.softmax(_full_precision(teacher_logits.detach()) / temperature, dim=-1),
        reduction="sum",
    )
    return temperature**2 * divergence / student_logits.shape[-2]


def joint_kd_loss(student_logits: Sequence[Tensor], teacher_logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Sum :func:`kd_loss` over the branches: twice L tensors (M * B, M * N) -> a scalar, Eq. 5."""
    return kd_loss(torch.stack(tuple(student_logits)), torch.stack(tuple(teacher_logits)), temperature)
