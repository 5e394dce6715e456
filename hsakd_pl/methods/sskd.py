"""Knowledge distillation meets self-supervision (SSKD; Xu et al., ECCV 2020): what transformed images resemble."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.modules import Frozen
from hsakd_pl.modules.build import load_initial, require_trained
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.connectors import ProjectedTeacher, make_projection
from hsakd_pl.ops import ROTATIONS, Transforms, cross_entropy, full_precision, kd_loss


def image_by_image(rows: Tensor, transforms: Transforms = ROTATIONS) -> Tensor:
    """Give the transformed rows, those of an image one after the other: (M * B, ...) -> ((M - 1) * B, ...)."""
    return transforms.by_transform(rows)[1:].transpose(0, 1).flatten(0, 1)


@full_precision
def contrast(projection: Tensor, transforms: Transforms = ROTATIONS) -> tuple[Tensor, Tensor]:
    """Give cosines of transformed images, image by image, with all B originals, and which of these is their own.

    Projections (M * B, D) -> ((M - 1) * B, B) and ((M - 1) * B,).
    """
    rows = F.normalize(projection, dim=1)
    originals = transforms.by_transform(rows)[0]
    own = torch.arange(len(originals), device=rows.device).repeat_interleave(transforms.count - 1)
    return image_by_image(rows, transforms) @ originals.T, own


def kept_rows(scores: Tensor, targets: Tensor, keep: float) -> Tensor:
    """Choose rows by a teacher's ``scores`` (rows, K): a mask (rows,), True where the target is ranked first.

    And for the part ``keep`` of the others, those that rank it best, of equals the earlier (Sec. 3.4 of the paper).
    """
    rank = (scores.argsort(1, descending=True) == targets[:, None]).to(torch.uint8).argmax(1)
    wrong = (rank > 0).sum()
    return rank.argsort(stable=True).argsort() < len(rank) - wrong + (wrong.double() * keep).floor()


@full_precision
def kept_kd_loss(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, keep: float) -> Tensor:
    """Average :func:`kd_loss` over the rows that are kept: scores twice (rows, K), targets (rows,) -> a scalar."""
    kept = kept_rows(teacher, targets, keep)
    ours, theirs = (torch.where(kept[:, None], scores, 0.0) for scores in (student, teacher))
    return kd_loss(ours, theirs, temperature) * len(kept) / kept.sum().clamp(min=1)


def sskd_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_projection: Tensor,
    teacher_projection: Tensor,
    labels: Tensor,
    transforms: Transforms = ROTATIONS,
    kd_temperature: float = 4.0,
    transformed_temperature: float = 4.0,
    contrast_temperature: float = 0.5,
    keep_transformed: float = 1.0,
    keep_contrast: float = 0.75,
) -> dict[str, Tensor]:
    """Name the four losses: CE and KD of images as they are, KD of transformed ones, KD of what these resemble.

    Logits (M * B, N), projections (M * B, D) and (M * B, D'), transformation by transformation; labels (B,).
    """
    upright, teacher_upright = student_logits[: len(labels)], teacher_logits[: len(labels)]
    ours, theirs = (image_by_image(logits, transforms) for logits in (student_logits, teacher_logits))
    (cosines, own), (others, _) = (contrast(each, transforms) for each in (student_projection, teacher_projection))
    return {
        "loss_ce": cross_entropy(upright, labels),
        "loss_kd": kd_loss(upright, teacher_upright, kd_temperature),
        "loss_transformed_kd": kept_kd_loss(ours, theirs, labels[own], transformed_temperature, keep_transformed),
        "loss_contrast": kept_kd_loss(cosines, others, own, contrast_temperature, keep_contrast),
    }


class SSKDModule(DistilledModule):
    """Minimises CE + KD + ``transformed_kd_weight`` KD on transformed images + ``contrast_weight`` KD of resemblances.

    Args:
        projection_weights: file of the teacher's projection head, from :class:`SSKDProjectionModule`, which ``fit``
            alone needs; ``random`` for a fresh one.
        transformed_temperature: of KD on transformed images.
        contrast_temperature: of KD of resemblances, among a device's own images.
        keep_transformed: part that is kept of the transformed images whose class the teacher does not rank first.
        keep_contrast: part that is kept of those whose original it does not rank first.
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        projection_weights: str | None = None,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        transformed_kd_weight: float = 2.7,
        contrast_weight: float = 10.0,
        transformed_temperature: float = 4.0,
        contrast_temperature: float = 0.5,
        keep_transformed: float = 1.0,
        keep_contrast: float = 0.75,
        **rest: Any,
    ) -> None:
        require_trained("projection_weights", "the teacher's projection head", projection_weights)
        require(0 <= keep_transformed <= 1, "keep_transformed", keep_transformed, "from 0 to 1")
        require(0 <= keep_contrast <= 1, "keep_contrast", keep_contrast, "from 0 to 1")
        own = {"loss_transformed_kd": transformed_kd_weight, "loss_contrast": contrast_weight}
        super().__init__(network, teacher, own, ce_weight=ce_weight, kd_weight=kd_weight, **rest)
        width, teacher_width = (each.width for each in self.shapes("embedding"))
        projected, before = ProjectedTeacher(self.teacher.network, teacher_width), self.teacher.state_dict()
        self.projection, before = make_projection(width), {key: tensor.clone() for key, tensor in before.items()}
        self.weight_files |= load_initial("projection_weights", projection_weights, projected)
        if not all(map(torch.equal, before.values(), projected.teacher.state_dict().values())):
            raise UsageError(f"projection_weights: {projection_weights} was made for another teacher: name its own")
        training_files = [file for option, file in self.weight_files.items() if option != "weights"]
        self.teacher = self.frozen[0] = Frozen(projected, *training_files)
        self.transform_images, self.views = True, self.network.transforms.count
        self.constants = transformed_temperature, contrast_temperature, keep_transformed, keep_contrast

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        outputs = student.logits, teacher.logits, self.projection(student.embedding), teacher.embedding
        return sskd_terms(*outputs, labels, self.network.transforms, self.temperature, *self.constants)
