"""FitNet (Romero et al., ICLR 2015): a hint for the student's map in the middle."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.connectors import make_regressor
from hsakd_pl.ops import full_precision


@full_precision
def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared error of two maps (B, C, H, W), the student's after its regressor -> a scalar.

    Raises UsageError where their shapes differ, since the regressor was made for images of another size.
    """
    if student_map.shape != teacher_map.shape:
        found = [tuple(each.shape[1:]) for each in (student_map, teacher_map)]
        raise UsageError(f"image_size: the maps to compare are {found[0]} and {found[1]}: set it to that of the images")
    return F.mse_loss(student_map, teacher_map)


class FitNetModule(DistilledModule):
    """Minimises CE + ``fitnet_weight`` times the error of the student's map, brought to the teacher's by a regressor.

    Args:
        stage: 1..L, after which the maps are compared.
    """

    def __init__(self, network: Net, teacher: Net, stage: int = 2, fitnet_weight: float = 100.0, **rest: Any) -> None:
        super().__init__(network, teacher, {"loss_fitnet": fitnet_weight}, **rest)
        both = [each.features for each in self.shapes("features")]
        last = min(map(len, both))
        require(1 <= stage <= last, "stage", stage, f"from 1 to {last}")
        self.stage, self.regressor = stage, make_regressor(*(maps[stage - 1] for maps in both))

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        ours, theirs = (each.features[self.stage - 1] for each in (student, teacher))
        return super().terms(student, teacher, labels) | {"loss_fitnet": hint_loss(self.regressor(ours), theirs)}
