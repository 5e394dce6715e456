"""FitNet (Romero et al., ICLR 2015): a hint for the student's map in the middle."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision


@full_precision
def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared error of two maps (B, C, H, W), the student's after its regressor -> a scalar.

    Raises UsageError where their shapes differ, since the regressor was made for images of another size.
    """
    student_shape = tuple(student_map.shape[1:])
    teacher_shape = tuple(teacher_map.shape[1:])
    if student_shape != teacher_shape:
        raise UsageError(
            f"image_size: the maps to compare are {student_shape} and {teacher_shape}: set it to that of the images"
        )
    return F.mse_loss(student_map, teacher_map)


def make_regressor(student_map: Tensor, teacher_map: Tensor) -> nn.Sequential:
    """Build a regressor from a map (B, C, H, W) to another's shape: convolution, norm, ReLU.

    At twice the size its stride is 2, at half of it the convolution is transposed, at any larger size it is as wide as
    needed. Raises UsageError for a student's map that is smaller in another way.
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
            f"stage: no regressor connects maps of {(height, width)} and {(teacher_height, teacher_width)}, "
            "the student's and the teacher's: choose another"
        )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


class FitNetModule(DistilledModule):
    """Minimises CE + ``fitnet_weight`` times the error of the student's map, brought to the teacher's by a regressor.

    Args:
        stage: 1..L, after which the maps are compared.
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
