"""The base of the methods that compare two views of an image, a weakly and a strongly augmented one."""

from typing import Any

from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.methods.distilled import DistilledModule
from hsakd_pl.methods.distilled import Net as Net
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.network import joined, outputs_of


def two_views(student: NetworkOutput, teacher: NetworkOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the class logits (B, N) of weak student, weak teacher, strong student and strong teacher.

    Args:
        student: outputs of the student for 2 * B rows, those of the weak views first.
        teacher: outputs of the teacher for the same rows.
    """
    student_weak, student_strong = student.logits.chunk(2)
    teacher_weak, teacher_strong = teacher.logits.chunk(2)
    return student_weak, teacher_weak, student_strong, teacher_strong


class TwoViewModule(DistilledModule):
    """Train on two views of each image; a method overrides :meth:`terms`, whose outputs have the weak views first.

    Batches are images (2 * B, 3, S, S), the weak views before the strong ones, and labels (B,): a data module of this
    package makes them for this module (:meth:`hsakd_pl.data.ImageDataModule.strong_transform`). Each view passes
    through the student alone, so that its batch norms see one view at a time, as in the published code.

    Arguments: :class:`DistilledModule`.
    """

    needs_strong_view = True
    views = 2

    def losses(self, batch: Any) -> dict[str, Tensor]:
        images, labels = batch
        if len(images) % 2 or len(images) < 2 * len(labels):
            raise UsageError(
                f"{type(self).__name__} trains on two views, (2 * B, 3, S, S), of images with B labels, but got "
                f"{len(images)} rows for {len(labels)} labels: fit it with a data module of this package"
            )
        teacher = self.teacher(images)  # first, as in StudentModule
        student = joined([outputs_of(self.network, view) for view in images.chunk(2)])
        return self.terms(student, teacher, labels)
