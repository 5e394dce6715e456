"""The method as pure functions: transformations, joint labels, class logits and losses (Sec. 3 of the paper).

M transformations turn a batch of B images into M * B rows, ordered by transformation. The first transformation is the
identity, so ``rows[:B]`` are the untransformed images, without a copy.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from itertools import permutations
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, require

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")
CHANNEL_ORDERS = tuple(permutations(range(3)))  # of red, green and blue; the first is the identity


@dataclass(frozen=True)
class Transforms:
    """Transform images in M ways: the self-supervised task. A network with branches owns its transformations.

    Calling an instance transforms a batch: (B, C, S, S) -> (M * B, C, S, S). The product ``a * b`` applies every
    transformation of ``a`` after every one of ``b``.

    Source: Yang et al., IJCAI 2021, Sec. 3.1; Lee et al., ICML 2020.

    Args:
        count: number of transformations M, including the identity.
        apply: applies transformation m in 1..M-1 to images (B, C, S, S); the shape must stay the same.
        name: name in configurations.

    Raises:
        UsageError: for a ``count`` below 1.

    Examples:
        >>> images = torch.rand(8, 3, 32, 32)
        >>> ROTATIONS(images).shape
        torch.Size([32, 3, 32, 32])
        >>> half_turns = Transforms(2, lambda images, m: images.rot90(2 * m, (2, 3)))
        >>> (half_turns * FLIPS).count
        4
    """

    count: int
    apply: Callable[[Tensor, int], Tensor]
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        require(self.count >= 1, "transforms: count", self.count, "at least 1, for the identity")

    def __str__(self) -> str:
        return f"{self.count} {self.name or 'unnamed transforms'}"

    def __call__(self, images: Tensor) -> Tensor:
        transformed = [self.apply(images, m) for m in range(1, self.count)]
        return torch.cat([images, *transformed])

    def __mul__(self, inner: "Transforms") -> "Transforms":
        name = f"{self.name}*{inner.name}" if self.name and inner.name else ""
        return Transforms(self.count * inner.count, _Product(self, inner), name)

    def joint_labels(self, labels: Tensor) -> Tensor:
        """Return the joint labels ``M * y + m`` of the rows.

        Args:
            labels: labels y (B,) in 0..N-1.

        Returns:
            Joint labels (M * B,) in 0..M*N-1.

        Examples:
            >>> FLIPS.joint_labels(torch.tensor([0, 7]))
            tensor([ 0, 14,  1, 15])
        """
        return torch.cat([self.count * labels + m for m in range(self.count)])

    def class_labels(self, labels: Tensor) -> Tensor:
        """Repeat the labels for the rows.

        Args:
            labels: labels (B,).

        Returns:
            Labels (M * B,).

        Examples:
            >>> FLIPS.class_labels(torch.tensor([0, 7]))
            tensor([0, 7, 0, 7])
        """
        return labels.repeat(self.count)

    def class_logits(self, joint_logits: Tensor) -> Tensor:
        """Sum joint logits over the transformations of each class.

        Args:
            joint_logits: joint logits (rows, M * N).

        Returns:
            Class logits (rows, N).

        Examples:
            >>> FLIPS.class_logits(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
            tensor([[3., 7.]])
        """
        return joint_logits.unflatten(1, (-1, self.count)).sum(-1)

    def view_logits(self, joint_logits: Tensor, views: Sequence[int]) -> Tensor:
        """Select the class logits of the transformation that each row shows.

        Source: Lee et al., ICML 2020.

        Args:
            joint_logits: joint logits (V * B, M * N), with rows ordered by transformation.
            views: the V transformations that the rows show.

        Returns:
            Class logits (V, B, N).

        Examples:
            >>> FLIPS.view_logits(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), views=[1])
            tensor([[[2., 4.]]])
        """
        by_class = joint_logits.unflatten(1, (-1, self.count)).unflatten(0, (len(views), -1))
        return torch.stack([by_class[view, ..., m] for view, m in enumerate(views)])

    def by_transform(self, rows: Tensor) -> Tensor:
        """Add a dimension for the transformations: (M * B, ...) -> (M, B, ...)."""
        return rows.unflatten(0, (self.count, -1))


@dataclass(frozen=True)
class _Product:
    """Apply transformation ``m = m_outer * inner.count + m_inner``."""

    outer: Transforms
    inner: Transforms

    def __call__(self, images: Tensor, m: int) -> Tensor:
        m_outer, m_inner = divmod(m, self.inner.count)
        if m_inner:
            images = self.inner.apply(images, m_inner)
        if m_outer:
            images = self.outer.apply(images, m_outer)
        return images


def _rotate(images: Tensor, m: int) -> Tensor:
    height, width = images.shape[-2:]
    if height != width:
        raise UsageError(f"rotation by 90 degrees needs square images, got {height} x {width}: crop or resize them")
    return torch.rot90(images, m, (2, 3))


def _mirror(images: Tensor, m: int) -> Tensor:
    return images.flip(3) if m else images


def _reorder_channels(images: Tensor, m: int) -> Tensor:
    channels = images.shape[1]
    if channels != len(CHANNEL_ORDERS[m]):
        raise UsageError(
            f"transforms: colours reorders red, green and blue, but the images have {channels} channels: choose "
            "rotations or flips"
        )
    return torch.stack([images[:, channel] for channel in CHANNEL_ORDERS[m]], dim=1)


MAX_TRANSFORMS = 64  # in a named product; rotations*flips*colours are 48

ROTATIONS = Transforms(4, _rotate, "rotations")
"""Rotate square images counter-clockwise by 0, 90, 180 and 270 degrees (Yang et al., IJCAI 2021, Sec. 3.1)."""

FLIPS = Transforms(2, _mirror, "flips")
"""Return images (B, C, H, W) as they are, and mirrored from left to right."""

COLOURS = Transforms(len(CHANNEL_ORDERS), _reorder_channels, "colours")
"""Reorder the channels of colour images (B, 3, H, W) in the 6 possible ways (Lee et al., ICML 2020)."""


def named_transforms(name: str) -> Transforms:
    """Return transformations by name.

    Args:
        name: ``rotations``, ``flips``, ``colours``, the import path of a :class:`Transforms` object, or a product of
            these.

    Returns:
        Transformations.

    Raises:
        UsageError: for an unknown name, and for a product of more than 64 transformations.

    Examples:
        >>> named_transforms("rotations*flips").count
        8
    """
    first, *others = name.split("*", MAX_TRANSFORMS)
    transforms = _named_factor(first.strip())
    for factor in others:
        transforms *= _named_factor(factor.strip())
        if transforms.count > MAX_TRANSFORMS:
            raise UsageError(
                f"transforms: {name:.80} are more than {MAX_TRANSFORMS} views of each image: leave factors out"
            )
    return transforms


def _named_factor(name: str) -> Transforms:
    named = {transforms.name: transforms for transforms in (ROTATIONS, FLIPS, COLOURS)}
    if name in named:
        return named[name]
    path, _, attribute = name.rpartition(".")
    try:
        transforms = getattr(import_module(path), attribute)
    except (ImportError, AttributeError, ValueError):
        transforms = None
    if not isinstance(transforms, Transforms):
        raise UsageError(
            f"transforms: {name!r} is neither one of {', '.join(named)} nor the import path of a Transforms object"
        )
    return Transforms(transforms.count, transforms.apply, name)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more scalars.

    Args:
        terms: scalars.

    Returns:
        Scalar.

    Examples:
        >>> total([torch.tensor(1.0), torch.tensor(2.0)])
        tensor(3.)
    """
    return torch.stack(list(terms)).sum()


def all_finite(values: Iterable[Any]) -> bool:
    """Return False if a dense tensor of floating point numbers contains NaN or inf; waits for the device only once.

    Tensors on the meta device, which have no values, count as finite.

    Args:
        values: tensors; others are ignored.

    Returns:
        False for NaN or inf.

    Examples:
        >>> all_finite([torch.ones(2), torch.tensor(float("nan"))])
        False
    """
    tensors = [value for value in values if isinstance(value, Tensor) and value.layout == torch.strided]
    finite = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point() and not tensor.is_meta]
    return not finite or bool(torch.stack(finite).all())


def full_precision(function: Callable[Inputs, Result]) -> Callable[Inputs, Result]:
    """Decorate a loss so that it computes in float32 or more, outside of autocast.

    Half precision tensors among the arguments are converted. The first argument must be a tensor or a sequence of
    tensors.

    Args:
        function: loss of tensors, or of sequences of tensors.

    Returns:
        Decorated function.

    Examples:
        >>> @full_precision
        ... def squared(values):
        ...     return values.square()
        >>> squared(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """

    @wraps(function)
    def computed(*arguments: Inputs.args, **options: Inputs.kwargs) -> Result:
        first: Any = [*arguments, *options.values()][0]
        device = (first if isinstance(first, Tensor) else first[0]).device.type
        with torch.autocast(device, enabled=False):
            wide_arguments = [_widened(value) for value in arguments]
            wide_options = {name: _widened(value) for name, value in options.items()}
            return function(*wide_arguments, **wide_options)  # type: ignore[arg-type]

    return computed


def _widened(value: Any) -> Any:
    """Convert half precision in a tensor, or in a list or tuple of tensors, to float32."""
    if type(value) in (list, tuple):
        return [_widened(item) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return _full_precision(value)
    return value


def _full_precision(logits: Tensor) -> Tensor:
    """Convert half precision to float32: dividing bfloat16 logits by 3 changes the gradient by a tenth."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the rows, in float32 or more.

    Args:
        logits: logits (rows, K).
        labels: int64 labels (rows,) in 0..K-1.

    Returns:
        Mean cross-entropy, a scalar.

    Examples:
        >>> cross_entropy(torch.zeros(8, 100), torch.arange(8))
        tensor(4.6052)
    """
    return F.cross_entropy(_full_precision(logits), labels)


def joint_cross_entropy(joint_logits: Sequence[Tensor], joint_labels: Tensor) -> Tensor:
    """Return the sum of the branches' mean cross-entropies.

    Source: Yang et al., IJCAI 2021, Eq. 3.

    Args:
        joint_logits: joint logits of the L branches, (M * B, M * N) each.
        joint_labels: joint labels (M * B,) in 0..M*N-1.

    Returns:
        Sum over the branches, a scalar.

    Examples:
        >>> joint_labels = ROTATIONS.joint_labels(torch.arange(8))
        >>> joint_cross_entropy([torch.zeros(32, 400)] * 3, joint_labels)
        tensor(17.9744)
    """
    branches = len(joint_logits)
    return branches * cross_entropy(torch.cat(tuple(joint_logits)), joint_labels.repeat(branches))


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""Return the knowledge distillation loss, averaged over the rows.

    .. math:: \mathcal{L} = \frac{\tau^2}{\text{rows}} \sum_\text{rows}
        \text{KL}(\text{softmax}(t / \tau) \parallel \text{softmax}(s / \tau))

    The paper of HSAKD writes the arguments of KL the other way round; its published code computes this.

    Source: Hinton et al., 2015; Yang et al., IJCAI 2021, Eq. 5 and 6.

    Args:
        student_logits: student logits s (rows, K), or (L, rows, K) for the sum of L such losses.
        teacher_logits: teacher logits t (rows, K), or (L, rows, K); they receive no gradient.
        temperature: temperature tau.

    Returns:
        Loss, a scalar.

    Examples:
        >>> student_logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> teacher_logits = torch.tensor([[3.0, 2.0, 1.0]])
        >>> kd_loss(student_logits, teacher_logits, temperature=3.0)
        tensor(1.3092)
    """
    divergence = F.kl_div(
        F.log_softmax(_full_precision(student_logits) / temperature, dim=-1),
        F.softmax(_full_precision(teacher_logits.detach()) / temperature, dim=-1),
        reduction="sum",
    )
    return temperature**2 * divergence / student_logits.shape[-2]


def joint_kd_loss(student_logits: Sequence[Tensor], teacher_logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the sum of :func:`kd_loss` over the branches.

    Source: Yang et al., IJCAI 2021, Eq. 5.

    Args:
        student_logits: joint logits of the student's L branches, (M * B, M * N) each.
        teacher_logits: joint logits of the teacher's branches, of the same shapes; they receive no gradient.
        temperature: temperature tau.

    Returns:
        Sum over the branches, a scalar.

    Examples:
        >>> logits = [torch.eye(32, 400)] * 3
        >>> joint_kd_loss(logits, logits, temperature=3.0)
        tensor(0.)
    """
    return kd_loss(torch.stack(tuple(student_logits)), torch.stack(tuple(teacher_logits)), temperature)


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool two maps to the same height and width.

    Args:
        student: map (B, C, H, W).
        teacher: map (B, C', H', W').

    Returns:
        Both maps, average-pooled to the smaller height and width.

    Examples:
        >>> student, teacher = pooled_alike(torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4))
        >>> student.shape
        torch.Size([1, 8, 4, 4])
    """
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return F.adaptive_avg_pool2d(student, (height, width)), F.adaptive_avg_pool2d(teacher, (height, width))
