"""Scale decoupled distillation (SDD; Wei et al., CVPR 2024): distil the logits of regions of the last feature map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.divergence import against_others, all_but, row_divergence, row_divergence_among
from hsakd_pl.methods.options import KDOptions, PairOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack

FINEST = 4  # side of the grid that all scales are pooled from, as in the published code
CROSSED = 2.0  # weight of a region that is right where the whole image is wrong, or the other way round


@full_precision
def region_logits(
    feature_map: Tensor, weight: Tensor, bias: Tensor | None, scales: Sequence[int] = (1, 2, 4)
) -> Tensor:
    """Return the logits (B, N, R) of regions of a feature map: the linear head applied to means of regions.

    The map is pooled to 4 x 4 cells, and these to scale x scale regions, for each scale in the given order, row by row.
    If 4 does not divide a side, the single region of scale 1 is not the plain mean of the map.

    Source: Wei et al., CVPR 2024; shicaiwei123/SDD-CVPR2024 @ e412036.

    Args:
        feature_map: map (B, C, H, W) that the head averages.
        weight: weight (N, C) of the head.
        bias: bias (N,) of the head, if any.
        scales: numbers of regions per side.

    Returns:
        Logits (B, N, R) of the R regions; R is the sum of the squared scales.

    Examples:
        >>> region_logits(torch.ones(2, 8, 8, 8), torch.ones(10, 8), None).shape
        torch.Size([2, 10, 21])
    """
    cells = F.adaptive_avg_pool2d(feature_map, FINEST)
    regions = [F.adaptive_avg_pool2d(cells, scale).flatten(2) for scale in scales]
    logits = weight @ torch.cat(regions, 2)
    return logits if bias is None else logits + bias[:, None]


@full_precision
def sdd_loss(student_regions: Tensor, teacher_regions: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Return the weighted mean of KD over images and regions r, a scalar.

    .. math:: \overline{\omega_{r} T^2 \, \mathrm{KL}(\mathrm{softmax}(t_r / T) \,\|\, \mathrm{softmax}(s_r / T))}

    omega is 2 where the teacher's class of the region is right and that of the whole image wrong, or the other way
    round, and otherwise 1.

    Source: Wei et al., CVPR 2024; shicaiwei123/SDD-CVPR2024 @ e412036.

    Args:
        student_regions: logits (B, N, R) of the student; the first region is the whole image.
        teacher_regions: logits (B, N, R) of the teacher.
        labels: classes (B,).
        temperature: temperature T.

    Returns:
        Loss, a scalar.

    Examples:
        >>> regions = torch.randn(4, 10, 5)
        >>> sdd_loss(regions, regions, torch.arange(4)).abs() < 1e-4
        tensor(True)
    """
    student_rows = student_regions.transpose(1, 2)
    teacher_rows = teacher_regions.transpose(1, 2).detach()
    divergence = row_divergence(student_rows / temperature, teacher_rows / temperature)
    return temperature**2 * (region_weights(teacher_regions, labels) * divergence).mean()


@full_precision
def sdd_dkd_loss(
    student_regions: Tensor,
    teacher_regions: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Return :func:`sdd_loss` with the two divergences of :func:`dkd_loss`, alpha * TCKD + beta * NCKD, a scalar.

    Source: Wei et al., CVPR 2024.

    Args:
        student_regions: logits (B, N, R) of the student; the first region is the whole image.
        teacher_regions: logits (B, N, R) of the teacher.
        labels: classes (B,).
        alpha: weight of the target class against all others.
        beta: weight of the divergence among the other classes.
        temperature: temperature T of both divergences.

    Returns:
        Loss, a scalar.

    Examples:
        >>> regions = torch.randn(4, 10, 5)
        >>> sdd_dkd_loss(regions, regions, torch.arange(4)).abs() < 1e-4
        tensor(True)
    """
    student_rows = student_regions.transpose(1, 2) / temperature
    teacher_rows = teacher_regions.transpose(1, 2).detach() / temperature
    targets = labels[:, None].expand(teacher_rows.shape[:2])
    target_loss = row_divergence(against_others(student_rows, targets), against_others(teacher_rows, targets))
    others = all_but(targets, teacher_rows.shape[2])
    others_loss = row_divergence_among(student_rows, teacher_rows, others)
    divergence = alpha * target_loss + beta * others_loss
    return temperature**2 * (region_weights(teacher_regions, labels) * divergence).mean()


def region_weights(teacher_regions: Tensor, labels: Tensor) -> Tensor:
    """Return the weights omega (B, R) of regions from the teacher's logits (B, N, R), the whole image first."""
    is_right = teacher_regions.argmax(1) == labels[:, None]
    crossed = is_right != is_right[:, :1]
    return torch.ones_like(teacher_regions[:, 0]).masked_fill(crossed, CROSSED)


class RegionModule(DistilledModule):
    """The base of both methods: it gives the logits of regions from the map that a network's head averages."""

    uses_unlabelled = False

    scales: tuple[int, ...] = ()

    def set_scales(self, scales: Sequence[int]) -> None:
        """Set the numbers of regions per side; raise UsageError unless 1, the whole image, is the first."""
        valid = len(scales) > 0 and scales[0] == 1 and all(1 <= scale <= FINEST for scale in scales)
        require(valid, "scales", list(scales), f"1, and further numbers from 1 to {FINEST}")
        self.scales = tuple(scales)
        self.shapes("pooled_map")
        self.linear_heads()

    def regions(self, student: NetworkOutput, teacher: NetworkOutput) -> tuple[Tensor, Tensor]:
        """Return the logits (B, N, R) of student and teacher."""
        student_head, teacher_head = self.linear_heads()
        return (
            region_logits(student.pooled_map, student_head.weight, student_head.bias, self.scales),
            region_logits(teacher.pooled_map, teacher_head.weight, teacher_head.bias, self.scales),
        )


class SDDModule(RegionModule):
    """Minimise 0.1 CE + 0.9 :func:`sdd_loss` at T = 4; the student is deployed with its plain head.

    Published scales: 1, 2 for resnet32x4-resnet8x4 and vgg13-vgg8, and 1, 2, 4 for pairs of two families. The published
    runs clip the norm of gradients at 40 (``trainer.gradient_clip_val``).

    Source: Wei et al., CVPR 2024.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        scales: numbers of regions per side, 1 first.
        ce_weight: weight of the cross-entropy.
        sdd_weight: weight of the loss.
        temperature: temperature of the loss.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = SDDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_sdd']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        scales: Sequence[int] = (1, 2, 4),
        ce_weight: float = 0.1,
        sdd_weight: float = 0.9,
        temperature: float = 4.0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, temperature=temperature, **options)
        self.set_loss_weights(loss_sdd=sdd_weight)
        self.set_scales(scales)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = sdd_loss(*self.regions(student, teacher), labels, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_sdd": loss}


class SDDDKDModule(RegionModule):
    """Minimise CE + ``sdd_dkd_weight`` * :func:`sdd_dkd_loss`; the student is deployed with its plain head.

    Source: Wei et al., CVPR 2024.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        scales: numbers of regions per side, 1 first; see :class:`SDDModule`.
        alpha: weight of the target class against all others.
        beta: weight of the divergence among the other classes; published: 6 for pairs of wrn and for vgg13, 2 for
            resnet56 and resnet110, otherwise 8.
        sdd_dkd_weight: weight of the loss.
        weight_warmup_epochs: epochs over which ``sdd_dkd_weight`` grows linearly; 20 in the published recipes.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = SDDDKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_sdd_dkd']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        scales: Sequence[int] = (1, 2, 4),
        alpha: float = 1.0,
        beta: float = 8.0,
        sdd_dkd_weight: float = 1.0,
        weight_warmup_epochs: int = 20,
        **options: Unpack[KDOptions],
    ) -> None:
        super().__init__(network, teacher, weight_warmup_epochs=weight_warmup_epochs, **options)
        self.set_loss_weights(loss_sdd_dkd=sdd_dkd_weight)
        self.set_scales(scales)
        self.alpha = alpha
        self.beta = beta

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = sdd_dkd_loss(*self.regions(student, teacher), labels, self.alpha, self.beta, self.temperature)
        return super().terms(student, teacher, labels) | {"loss_sdd_dkd": loss}
