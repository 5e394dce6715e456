"""Knowledge distillation meets self-supervision (SSKD; Xu et al., ECCV 2020): contrast transformed images.

Stage one, :class:`SSKDProjectionModule`, trains a projection head on the teacher's embedding; stage two,
:class:`SSKDModule`, trains the student.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.data.learned import Learned, learned_from, learned_from_file
from hsakd_pl.errors import UsageError, require
from hsakd_pl.files.weights import WeightFile
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.modules import Frozen, HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, require_trained
from hsakd_pl.modules.evaluated import Batch
from hsakd_pl.modules.options import SharedOptions
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.network import outputs_of
from hsakd_pl.ops import ROTATIONS, Transforms, cross_entropy, full_precision, kd_loss
from hsakd_pl.signatures import Unpack


def image_by_image(rows: Tensor, transforms: Transforms = ROTATIONS) -> Tensor:
    """Return the rows of transformed images, ordered by image: (M * B, ...) -> ((M - 1) * B, ...)."""
    return transforms.by_transform(rows)[1:].transpose(0, 1).flatten(0, 1)


@full_precision
def contrast(projection: Tensor, transforms: Transforms = ROTATIONS) -> tuple[Tensor, Tensor]:
    """Return the cosines of transformed images with all original images, and the index of the right original.

    Args:
        projection: projections (M * B, D), ordered by transformation.
        transforms: the M transformations.

    Returns cosines ((M - 1) * B, B) and indices ((M - 1) * B,), ordered by image.
    """
    directions = F.normalize(projection, dim=1)
    originals = transforms.by_transform(directions)[0]
    targets = torch.arange(len(originals), device=projection.device).repeat_interleave(transforms.count - 1)
    return image_by_image(directions, transforms) @ originals.T, targets


def kept_rows(scores: Tensor, targets: Tensor, keep: float) -> Tensor:
    """Return a mask (rows,) of the rows that are distilled (Sec. 3.4 of the paper).

    All rows whose target has the highest score are kept, and the part ``keep`` of the others that rank the target best;
    ties keep the earlier row.

    Args:
        scores: scores (rows, K) of the teacher.
        targets: indices (rows,) of the right scores.
        keep: part of the wrongly ranked rows, from 0 to 1.
    """
    ranking = scores.argsort(1, descending=True)
    rank_of_target = (ranking == targets[:, None]).to(torch.uint8).argmax(1)
    wrong = (rank_of_target > 0).sum()
    right = len(rank_of_target) - wrong
    place = rank_of_target.argsort(stable=True).argsort()
    return place < right + (wrong.double() * keep).floor()


@full_precision
def kept_kd_loss(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, keep: float) -> Tensor:
    """Return :func:`kd_loss` of scores (rows, K), averaged over :func:`kept_rows`, a scalar."""
    kept = kept_rows(teacher, targets, keep)
    student_kept = torch.where(kept[:, None], student, 0.0)  # rows of zeros in both add nothing
    teacher_kept = torch.where(kept[:, None], teacher, 0.0)
    return kd_loss(student_kept, teacher_kept, temperature) * len(kept) / kept.sum().clamp(min=1)


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
    r"""Return four unweighted losses: CE and KD of untransformed images, KD of transformed ones, KD of their contrast.

    .. math:: \mathrm{CE}, \quad \mathrm{KD}_T(z_0), \quad \mathrm{KD}_{T_1}(z_m), \quad
        \mathrm{KD}_{T_2}(\cos(h_m, h_0))

    z_0 are logits of untransformed and z_m of transformed images, h their projections, whose cosines with all originals
    of the batch are contrasted. All rows are ordered by transformation, the untransformed images first.

    Source: Xu et al., ECCV 2020.

    Args:
        student_logits: class logits (M * B, N) of the student.
        teacher_logits: class logits (M * B, N) of the teacher.
        student_projection: projected embeddings (M * B, D) of the student.
        teacher_projection: projected embeddings (M * B, D') of the teacher.
        labels: classes (B,).
        transforms: the M transformations.
        kd_temperature: temperature of KD on untransformed images.
        transformed_temperature: temperature of KD on transformed images.
        contrast_temperature: temperature of the cosines.
        keep_transformed: part of the wrongly classified transformed images that is kept.
        keep_contrast: part of the transformed images with a wrong original that is kept.

    Returns:
        Scalars by name: ``loss_ce``, ``loss_kd``, ``loss_transformed_kd`` and ``loss_contrast``.

    Examples:
        >>> logits, projection = torch.randn(8, 10), torch.randn(8, 16)
        >>> sorted(sskd_terms(logits, logits, projection, projection, torch.arange(2)))
        ['loss_ce', 'loss_contrast', 'loss_kd', 'loss_transformed_kd']
    """
    student_upright = student_logits[: len(labels)]
    teacher_upright = teacher_logits[: len(labels)]
    student_transformed = image_by_image(student_logits, transforms)
    teacher_transformed = image_by_image(teacher_logits, transforms)
    student_cosines, targets = contrast(student_projection, transforms)
    teacher_cosines, _ = contrast(teacher_projection, transforms)
    return {
        "loss_ce": cross_entropy(student_upright, labels),
        "loss_kd": kd_loss(student_upright, teacher_upright, kd_temperature),
        "loss_transformed_kd": kept_kd_loss(
            student_transformed, teacher_transformed, labels[targets], transformed_temperature, keep_transformed
        ),
        "loss_contrast": kept_kd_loss(student_cosines, teacher_cosines, targets, contrast_temperature, keep_contrast),
    }


def make_projection(width: int) -> nn.Sequential:
    """Return a projection head of two linear layers: (B, width) -> (B, width)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class ProjectedTeacher(Network):
    """Pass the embedding (B, width) of a frozen teacher through a projection head, which may be trained."""

    def __init__(self, teacher: Network, width: int) -> None:
        super().__init__(teacher.num_classes, teacher.transforms)
        self.in_channels = teacher.in_channels
        self.teacher = teacher
        self.projection = make_projection(width)
        self.weights_from = teacher.weights_from

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        return self.teacher.pretrained_cfg

    def remember(self, file: WeightFile, new_head: bool = False) -> None:
        """Keep the origin of the teacher's weights; the file holds a projection head too."""
        if self.teacher.weights_from is None or self.teacher.weights_from.description is None:
            self.teacher.remember(file, new_head)
        self.weights_from = self.teacher.weights_from

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher(images)

    def outputs(self, images: Tensor) -> NetworkOutput:
        with torch.no_grad():
            output = self.teacher.outputs(images)
        return output._replace(embedding=self.projection(output.embedding))


class SSKDProjectionModule(HSAKDModule):
    """Minimise the cross-entropy of finding a transformed image's original by the cosines of their projections.

    Only the projection head is trained, for 60 epochs in the paper; stage two loads its checkpoint as
    ``projection_weights``. Each device contrasts its own images. ``val/acc`` is the accuracy of the frozen teacher.

    Source: Xu et al., ECCV 2020.

    Args:
        network: registry name of the teacher, or a network.
        weights: weight file of a teacher given by name; ``random`` for new weights.
        num_classes: number of classes of a teacher given by name.
        channels: number of channels of the images that a teacher given by name takes.
        image_size: height and width of the images in pixels; the width of the embedding depends on it.
        milestones: epochs, counted after the warm-up, at which ``lr`` is divided by 10.
        lr: learning rate of SGD.
        weight_decay: weight decay of SGD.

    Other arguments: :class:`hsakd_pl.HSAKDModule`.

    Raises:
        UsageError: for a network given by name without ``weights``.

    Examples:
        >>> module = SSKDProjectionModule("resnet14", weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_contrast']
    """

    batch_terms = ("loss_contrast",)

    def __init__(
        self,
        network: Net,
        weights: str | None = None,
        num_classes: int = 100,
        image_size: int = 32,
        milestones: Sequence[int] = (30, 45),
        lr: float = 0.05,
        weight_decay: float = 5e-4,
        channels: int = 3,
        **options: Unpack[SharedOptions],
    ) -> None:
        require_trained("weights", network, weights)
        teacher = build_network(network, num_classes, branches=False, channels=channels)
        weight_files = load_initial("weights", weights, teacher)
        projected = ProjectedTeacher(teacher, teacher.shapes(image_size, "embedding").width)
        super().__init__([projected], milestones=milestones, lr=lr, weight_decay=weight_decay, **options)
        self.weight_files = weight_files
        self.frozen.append(Frozen(teacher))
        self.views = self.network.transforms.count

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        return self.terms(outputs_of(self.network, self.network.transforms(images)), None, labels)

    def terms(self, student: NetworkOutput, teacher: None, labels: Tensor) -> dict[str, Tensor]:
        cosines, targets = contrast(student.embedding, self.network.transforms)
        return {"loss_contrast": cross_entropy(cosines, targets)}


class SSKDModule(DistilledModule):
    """Minimise the weighted sum of the four losses of :func:`sskd_terms`; each device contrasts its own images.

    Source: Xu et al., ECCV 2020.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        projection_weights: checkpoint of :class:`SSKDProjectionModule`, needed only for ``fit``; ``random`` for a new
            projection head.
        ce_weight: weight of the cross-entropy.
        kd_weight: weight of KD on untransformed images.
        transformed_kd_weight: weight of KD on transformed images.
        contrast_weight: weight of KD of the contrast.
        transformed_temperature: temperature of KD on transformed images.
        contrast_temperature: temperature of the cosines.
        keep_transformed: part of the transformed images that is kept where the teacher's class is wrong.
        keep_contrast: part of the transformed images that is kept where the teacher's original is wrong.
        temperature: temperature of KD on untransformed images.
        weight_warmup_epochs: epochs over which ``transformed_kd_weight`` and ``contrast_weight`` grow linearly.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: if a part to keep is not from 0 to 1, and for a projection head that was trained on another teacher.

    Examples:
        >>> random = {"teacher_weights": "random", "projection_weights": "random"}
        >>> module = SSKDModule("resnet8", "resnet14", num_classes=10, **random)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_transformed_kd', 'loss_contrast']
    """

    uses_unlabelled = False
    batch_terms = ("loss_transformed_kd", "loss_contrast")

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
        temperature: float = 4.0,
        weight_warmup_epochs: int = 0,
        **options: Unpack[PairOptions],
    ) -> None:
        require_trained("projection_weights", "the teacher's projection head", projection_weights)
        require(0 <= keep_transformed <= 1, "keep_transformed", keep_transformed, "from 0 to 1")
        require(0 <= keep_contrast <= 1, "keep_contrast", keep_contrast, "from 0 to 1")
        super().__init__(
            network,
            teacher,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            temperature=temperature,
            weight_warmup_epochs=weight_warmup_epochs,
            **options,
        )
        self.set_loss_weights(loss_transformed_kd=transformed_kd_weight, loss_contrast=contrast_weight)
        student_shapes, teacher_shapes = self.shapes("embedding")
        projected = self._project(teacher_shapes.width, projection_weights)
        self.projection = make_projection(student_shapes.width)
        training_files = [file for option, file in self.weight_files.items() if option != "weights"]
        self.teacher = Frozen(projected, *training_files)
        self.frozen[0] = self.teacher
        self.transform_images = True
        self.views = self.network.transforms.count
        self.transformed_temperature = transformed_temperature
        self.contrast_temperature = contrast_temperature
        self.keep_transformed = keep_transformed
        self.keep_contrast = keep_contrast

    def _project(self, width: int, projection_weights: str | None) -> ProjectedTeacher:
        """Return the teacher with a trained projection head; raise UsageError if it was trained on another teacher."""
        projected = ProjectedTeacher(self.teacher.network, width)
        before = {key: tensor.clone() for key, tensor in projected.teacher.state_dict().items()}
        self.weight_files |= load_initial("projection_weights", projection_weights, projected)
        after = projected.teacher.state_dict()
        if not all(torch.equal(before[key], after[key]) for key in before):
            raise UsageError(
                f"projection_weights: {projection_weights} was made for another teacher: pass the file of this one"
            )
        return projected

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and "projection_weights" in self.weight_files:
            self._check_projection(learned_from_file(self.weight_files["projection_weights"]))

    def _check_projection(self, projection: Learned) -> None:
        """Raise UsageError if the projection head has learnt from images that the teacher is not given."""
        teacher = learned_from(self.teacher.network)
        if teacher.mean is None or teacher.std is None or projection.normalised_alike(teacher.mean, teacher.std):
            return
        raise UsageError(
            f"projection_weights: {projection.origin} was trained on images normalised with mean {projection.mean} and "
            f"std {projection.std}, the teacher on {teacher.mean} and {teacher.std}: train the projection head again"
        )

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        return sskd_terms(
            student.logits,
            teacher.logits,
            self.projection(student.embedding),
            teacher.embedding,
            labels,
            self.network.transforms,
            kd_temperature=self.temperature,
            transformed_temperature=self.transformed_temperature,
            contrast_temperature=self.contrast_temperature,
            keep_transformed=self.keep_transformed,
            keep_contrast=self.keep_contrast,
        )
