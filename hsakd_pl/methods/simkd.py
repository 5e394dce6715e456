"""Knowledge distillation with the reused teacher classifier (SimKD; Chen et al., CVPR 2022): fit its maps."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.modules import Frozen
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.transfer import add_transfer, shrunk, transfer_block
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


def simkd_transfer(student_channels: int, teacher_channels: int, factor: int = 2) -> nn.Sequential:
    """Return the transfer block (B, student_channels, H, W) -> (B, teacher_channels, H, W), a bottleneck.

    Convolutions of 1x1, 3x3 and 1x1, each with norm and ReLU, the inner ones with ``teacher_channels`` / ``factor``
    channels.

    Source: Chen et al., CVPR 2022.

    Args:
        student_channels: channels of the student's last map.
        teacher_channels: channels of the teacher's last map.
        factor: divisor of the inner channels; 2, 4 and 8 in the paper.

    Returns:
        Sequence of layers with fresh weights.

    Raises:
        UsageError: if ``factor`` does not divide the teacher's channels.

    Examples:
        >>> simkd_transfer(64, 256)(torch.randn(2, 64, 8, 8)).shape
        torch.Size([2, 256, 8, 8])
    """
    return transfer_block(student_channels, teacher_channels, factor)


def simkd_loss(student_map: Tensor, teacher_map: Tensor, transfer: nn.Module) -> Tensor:
    r"""Return the mean squared error of the transferred map and the teacher's, a scalar.

    .. math:: \overline{\left( \mathrm{transfer}(s) - t \right)^2}

    The larger of the two maps is average-pooled to the size of the other: the student's before the transfer block.

    Source: Chen et al., CVPR 2022; DefangChen/SimKD @ 2b389c3.

    Args:
        student_map: last map (B, C, H, W) of the student.
        teacher_map: last map (B, C', H', W') of the teacher; it receives no gradient.
        transfer: transfer block, as :func:`simkd_transfer` returns it.

    Returns:
        Loss, a scalar.

    Examples:
        >>> simkd_loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 2, 2), torch.nn.Identity())
        tensor(1.)
    """
    height, width = teacher_map.shape[2:]
    return _map_loss(transfer(shrunk(student_map, height, width)), teacher_map)


@full_precision
def _map_loss(transferred: Tensor, teacher_map: Tensor) -> Tensor:
    height, width = transferred.shape[2:]
    return F.mse_loss(transferred, shrunk(teacher_map.detach(), height, width))


def simkd_logits(student_map: Tensor, transfer: nn.Module, weight: Tensor, bias: Tensor, size: int) -> Tensor:
    """Return the class logits (B, N) of the deployed student: the teacher's head on the mean of the transferred map.

    Source: Chen et al., CVPR 2022.

    Args:
        student_map: last map (B, C, H, W) of the student.
        transfer: transfer block, as :func:`simkd_transfer` returns it.
        weight: weight (N, C') of the teacher's head.
        bias: bias (N,) of the teacher's head.
        size: height and width of the teacher's last map, to which a larger map is average-pooled.

    Returns:
        Class logits (B, N).

    Examples:
        >>> feature_map, weight, bias = torch.ones(2, 8, 4, 4), torch.ones(3, 8), torch.zeros(3)
        >>> simkd_logits(feature_map, torch.nn.Identity(), weight, bias, size=2)[0]
        tensor([8., 8., 8.])
    """
    return F.linear(transfer(shrunk(student_map, size, size)).mean((2, 3)), weight, bias)


class SimKDModule(DistilledModule):
    """Minimise :func:`simkd_loss` alone; the student's own head is replaced by transfer block and teacher's head.

    These parts stay with the student: they are evaluated, tested, exported and counted. Its name becomes
    ``NAME+transfer:CHANNELS:SIDE:FACTOR``. A network object that is given is changed in place. The maps are those that
    the networks' heads average, which in a wide residual network is after the last norm and ReLU.

    Source: Chen et al., CVPR 2022.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        factor: divisor of the transfer block's inner channels; 2, 4 and 8 in the paper.
        simkd_weight: weight of the loss.
        ce_weight: weight of the cross-entropy.
        kd_weight: weight of the KD term.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = SimKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_simkd']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        factor: int = 2,
        simkd_weight: float = 1.0,
        ce_weight: float = 0.0,
        kd_weight: float = 0.0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, kd_weight=kd_weight, **options)
        self.set_loss_weights(loss_simkd=simkd_weight)
        _, teacher_shapes = self.shapes("pooled_map")
        _, teacher_head = self.linear_heads()
        _, channels, side, _ = teacher_shapes.pooled_map.shape
        add_transfer(self.network, channels, side, factor)
        head = self.network.linear_head
        with torch.no_grad():
            head.weight.copy_(teacher_head.weight)
            head.bias.copy_(torch.zeros(self.num_classes) if teacher_head.bias is None else teacher_head.bias)
        self.frozen.append(Frozen(head))

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = _map_loss(student.pooled_map, teacher.pooled_map)
        return super().terms(student, teacher, labels) | {"loss_simkd": loss}
