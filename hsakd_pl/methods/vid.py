"""Variational information distillation (VID; Ahn et al., CVPR 2019): predict the teacher's maps with a variance."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.maps import paired, pooled_alike
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision, total
from hsakd_pl.signatures import Unpack

LEAST_VARIANCE = 1e-5  # added to the variances, as in the published code


@full_precision
def vid_loss(mean: Tensor, teacher_map: Tensor, variance: Tensor) -> Tensor:
    r"""Return the negative log-likelihood of a Gaussian without its constant, a scalar (Eq. 5 of the paper).

    .. math:: \frac{1}{2} \, \overline{\frac{(\mu - t)^2}{\sigma_c^2} + \log \sigma_c^2}

    mu is the mean that a regressor predicts from the student's map, sigma_c^2 the variance of a channel.

    Source: Ahn et al., CVPR 2019.

    Args:
        mean: predicted means (B, C, H, W).
        teacher_map: feature map (B, C, H, W) of the teacher.
        variance: variances (C,) of the channels.

    Returns:
        Loss, a scalar, which may be negative.

    Examples:
        >>> vid_loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4), torch.ones(8))
        tensor(0.5000)
    """
    error = (mean - teacher_map).square() / variance[:, None, None]
    return (error + variance.log()[:, None, None]).mean() / 2


class Variational(nn.Module):
    """Predict a teacher's map: means by three 1x1 convolutions, and one variance per channel.

    Args:
        channels: channels of the student's map.
        out_channels: channels of the teacher's map.
        variance: initial variance.
    """

    def __init__(self, channels: int, out_channels: int, variance: float = 5.0) -> None:
        super().__init__()
        require(LEAST_VARIANCE < variance < math.inf, "variance", variance, f"above {LEAST_VARIANCE}")
        self.regressor = nn.Sequential(
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
        )
        log_scale = math.log(math.expm1(variance - LEAST_VARIANCE))  # the inverse of softplus
        self.log_scale = nn.Parameter(torch.full((out_channels,), log_scale))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and teacher's map (B, out_channels, H, W) at the smaller size, and variances (out_channels,)."""
        student_map, teacher_map = pooled_alike(student_map, teacher_map)
        variance = F.softplus(self.log_scale) + LEAST_VARIANCE
        return self.regressor(student_map), teacher_map, variance


class VIDModule(DistilledModule):
    """Minimise CE + ``vid_weight`` * the sum over stages of :func:`vid_loss`, through trained regressors.

    Source: Ahn et al., CVPR 2019.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        variance: initial variance of each channel, trained; 5 in the published code.
        vid_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = VIDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_vid']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        variance: float = 5.0,
        vid_weight: float = 1.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_vid=vid_weight)
        student_shapes, teacher_shapes = self.shapes("features")
        self.stages = nn.ModuleList(
            Variational(student_map.shape[1], teacher_map.shape[1], variance)
            for student_map, teacher_map in paired(student_shapes.features, teacher_shapes.features)
        )

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        losses = []
        for stage, student_map, teacher_map in zip(self.stages, student.features, teacher.features, strict=True):
            mean, pooled_teacher_map, variance = stage(student_map, teacher_map)
            losses.append(vid_loss(mean, pooled_teacher_map, variance))
        return super().terms(student, teacher, labels) | {"loss_vid": total(losses)}
