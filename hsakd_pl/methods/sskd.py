"""Knowledge distillation meets self-supervision (SSKD; Xu et al., ECCV 2020): what rotated images resemble."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.precision import full_precision
from hsakd_pl.ops import ROTATIONS, Transforms, cross_entropy, kd_loss


def image_by_image(rows: Tensor, transforms: Transforms = ROTATIONS) -> Tensor:
    """Give the transformed rows, three rotations of an image after the other: (M * B, ...) -> ((M - 1) * B, ...)."""
    return transforms.by_transform(rows)[1:].transpose(0, 1).flatten(0, 1)


@full_precision
def contrast(projection: Tensor, transforms: Transforms = ROTATIONS) -> Tensor:
    """Cosines ((M - 1) * B, B) of transformed images, image by image, with images as they are: of rows (M * B, D)."""
    rows = F.normalize(projection, dim=1)
    return image_by_image(rows, transforms) @ rows[: len(rows) // transforms.count].T


def kept_rows(scores: Tensor, targets: Tensor, keep: float) -> Tensor:
    """Which rows a teacher's ``scores`` (rows, K) rank well: a mask (rows,), True for all whose target is the best.

    Of the others, the part ``keep`` that is ranked best, of equals the earlier (Sec. 3.4 of its paper).
    """
    order = scores.argsort(1, descending=True)
    rank = (order == targets[:, None]).to(torch.uint8).argmax(1)
    position = rank.argsort(stable=True).argsort()
    wrong = (rank > 0).sum()
    return position < len(rank) - wrong + (wrong.double() * keep).floor()


@full_precision
def selected_kd_loss(student: Tensor, teacher: Tensor, kept: Tensor, temperature: float) -> Tensor:
    """Average :func:`kd_loss` over the rows that a mask keeps: twice (rows, K) and (rows,) -> a scalar."""
    ours, theirs = (torch.where(kept[:, None], scores, 0.0) for scores in (student, teacher))
    return kd_loss(ours, theirs, temperature) * len(kept) / kept.sum().clamp(min=1)


def sskd_terms(
    student_logits: Tensor, teacher_logits: Tensor, student_projection: Tensor, teacher_projection: Tensor,
    labels: Tensor, transforms: Transforms = ROTATIONS, kd_temperature: float = 4.0,
    transformed_temperature: float = 4.0, contrast_temperature: float = 0.5, keep_transformed: float = 1.0,
    keep_contrast: float = 0.75,
) -> dict[str, Tensor]:  # fmt: skip
    """Name the four losses: CE and KD of images as they are, KD of transformed ones, KD of what these resemble.

    Logits (M * B, N) and projections (M * B, D) and (M * B, D'), transformation by transformation; labels (B,).
    """
    images = len(labels)
    originals = torch.arange(images, device=labels.device).repeat_interleave(transforms.count - 1)
    ours, theirs = (image_by_image(logits, transforms) for logits in (student_logits, teacher_logits))
    our_contrast, contrasts = (contrast(rows, transforms) for rows in (student_projection, teacher_projection))
    kept = kept_rows(theirs, labels[originals], keep_transformed)
    kept_contrast = kept_rows(contrasts, originals, keep_contrast)
    return {
        "loss_ce": cross_entropy(student_logits[:images], labels),
        "loss_kd": kd_loss(student_logits[:images], teacher_logits[:images], kd_temperature),
        "loss_transformed_kd": selected_kd_loss(ours, theirs, kept, transformed_temperature),
        "loss_contrast": selected_kd_loss(our_contrast, contrasts, kept_contrast, contrast_temperature),
    }
