"""FitNet (Romero et al., ICLR 2015): regress a feature map of the teacher from one of the student."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    r"""Return the mean squared error of two feature maps, a scalar.

    .. math:: \overline{\left( \mathrm{regressor}(s) - t \right)^2}

    Source: Romero et al., ICLR 2015.

    Args:
        student_map: feature map (B, C, H, W) of the student after the regressor.
        teacher_map: feature map (B, C, H, W) of the teacher.

    Returns:
        Loss, a scalar.

    Raises:
        UsageError: if the shapes differ, because the regressor was built for images of another size.

    Examples:
        >>> hint_loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4))
        tensor(1.)
    """
    student_shape = tuple(student_map.shape[1:])
    teacher_shape = tuple(teacher_map.shape[1:])
    if student_shape != teacher_shape:
        raise UsageError(
            f"image_size: the regressed map is {student_shape}, the teacher's {teacher_shape}; "
            "set image_size to the size of the images"
        )
    return F.mse_loss(student_map, teacher_map)


def make_regressor(student_map: Tensor, teacher_map: Tensor) -> nn.Sequential:
    """Return a regressor from the student's map (B, C, H, W) to the shape of the teacher's: convolution, norm, ReLU.

    The convolution has stride 2 for a student's map of twice the size and is transposed for one of half the size; for
    any other larger map its kernel is as large as needed. Raises UsageError for other smaller maps.
    """
    _, in_channels, height, width = student_map.shape
    _, out_channels, teacher_height, teacher_width = teacher_map.shape
    convolution: nn.Module
    if (height, width) == (2 * teacher_height, 2 * teacher_width):
        convolution = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
    elif (2 * height, 2 * width) == (teacher_height, teacher_width):
        convolution = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
    elif height >= teacher_height and width >= teacher_width:
        kernel_size = (1 + height - teacher_height, 1 + width - teacher_width)
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size)
    else:
        raise UsageError(
            f"stage: no regressor leads from the student's map of {(height, width)} to the teacher's of "
            f"{(teacher_height, teacher_width)}; choose another stage"
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class FitNetModule(DistilledModule):
    """Minimise CE + ``fitnet_weight`` * :func:`hint_loss` after one stage, through a trained regressor.

    Source: Romero et al., ICLR 2015.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        stage: stage, from 1 to L, after which the maps are compared; 2 in the field's tables.
        fitnet_weight: weight of the loss; 100 in the field's tables.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: for a stage that the networks do not have, or whose maps no regressor connects.

    Examples:
        >>> module = FitNetModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_fitnet']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        stage: int = 2,
        fitnet_weight: float = 100.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_fitnet=fitnet_weight)
        student_shapes, teacher_shapes = self.shapes("features")
        last_stage = min(len(student_shapes.features), len(teacher_shapes.features))
        require(1 <= stage <= last_stage, "stage", stage, f"from 1 to {last_stage}")
        self.stage = stage
        self.regressor = make_regressor(student_shapes.features[stage - 1], teacher_shapes.features[stage - 1])

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        regressed_map = self.regressor(student.features[self.stage - 1])
        loss = hint_loss(regressed_map, teacher.features[self.stage - 1])
        return super().terms(student, teacher, labels) | {"loss_fitnet": loss}
