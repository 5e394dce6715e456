"""Distil the embedding of a teacher without a class head, from images without labels."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.data import Description
from hsakd_pl.data.augment import check_statistics, numbers
from hsakd_pl.data.folders import MEAN, STD
from hsakd_pl.data.learned import Learned, learned_from
from hsakd_pl.data.limits import check_image_size
from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.files.weights import WeightFile, read_weight_file, split_entry, unwrap
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import PRETRAINED, RANDOM, Net, build_network, load_initial, require_trained, unpacked
from hsakd_pl.modules.evaluated import Batch
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.neighbours import Embeddings, knn_accuracy, linear_accuracy
from hsakd_pl.modules.options import TrainingOptions
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.encoder import Encoder, shapes_of
from hsakd_pl.networks.network import outputs_of
from hsakd_pl.networks.timm import create_model, pretrained_weights
from hsakd_pl.networks.weights import load_weights
from hsakd_pl.ops import full_precision, pooled_alike
from hsakd_pl.signatures import Unpack

Part = Literal["pooled", "class_token", "patch_mean"]
Interpolation = Literal["bilinear", "bicubic"]


@full_precision
def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean of :math:`1 - \cos(s, t)` over the rows of embeddings (B, D), a scalar.

    Examples:
        >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor(0.)
    """
    return 1 - F.cosine_similarity(student, teacher.detach()).mean()


@full_precision
def scaled_error(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean squared error of embeddings (B, D) from the teacher's, of a root mean square of 1, a scalar.

    .. math:: \overline{\left( s - t / \sqrt{\overline{t^2}} \right)^2}

    The scale of the teacher's embeddings, by which models differ widely, changes neither loss nor learning rate.

    Examples:
        >>> scaled_error(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor(1.)
    """
    target = teacher.detach()
    return F.mse_loss(student, target / target.square().mean().sqrt().clamp(min=1e-12))


def map_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return :func:`cosine_loss` + :func:`scaled_error` over all positions of maps (B, D, H, W), a scalar.

    The larger map is average-pooled to the size of the other.
    """
    pair = pooled_alike(student_map, teacher_map)
    student, teacher = (feature_map.permute(0, 2, 3, 1).flatten(0, 2) for feature_map in pair)
    return cosine_loss(student, teacher) + scaled_error(student, teacher)


class EmbeddingModule(HSAKDModule):
    """Minimise the distance of a student's embedding from that of a frozen teacher; labels are not used.

    The loss is ``cosine_weight`` * :func:`cosine_loss` + ``mse_weight`` * :func:`scaled_error`, and with
    ``map_weight`` :func:`map_loss` of the last maps after a trained 1x1 convolution. The student's last layer maps its
    pooled features to the teacher's width, so that the exported network replaces the teacher, up to one factor: the
    teacher's embeddings count with a root mean square of 1.

    A validation with labels measures the embeddings: ``val/acc`` is the accuracy of the vote of each image's ``knn``
    nearest neighbours, ``val/linear_acc`` that of a linear probe by least squares, both of all other images of the
    split (leave-one-out), so that no training image needs a label. ``val/cosine`` is the mean cosine of student and
    teacher, and needs no labels.

    ``weights`` of other modules take the checkpoint, with ``new_head`` for a classifier.

    Args:
        network: name (see :func:`hsakd_pl.create_network`), or network that returns embeddings of the teacher's width.
        teacher: ``timm:`` and a timm model's name, a name of this package, or any network; see
            :class:`hsakd_pl.networks.encoder.Encoder` for what it may return.
        teacher_weights: weight file of a teacher given by name, ``pretrained`` or ``random``; only ``fit`` needs it.
        teacher_embedding: part of the teacher's output that is its embedding: ``pooled``, ``class_token`` or
            ``patch_mean``; by default the first of these that there is.
        teacher_size: side in pixels of the teacher's images; by default as its weights or timm say, otherwise the
            data's.
        teacher_mean: mean of each channel in [0, 1] that the teacher's images are normalised with, ``imagenet``, or
            ``data`` for the student's images; needed if neither its weights nor timm say it.
        teacher_std: standard deviation of each channel, if ``teacher_mean`` is three numbers.
        teacher_interpolation: interpolation of the teacher's images where sizes differ; by default timm's, or bilinear.
        teacher_classes: number of classes of a teacher given by a name of this package.
        weights: weight file that the student starts from, or ``pretrained``; a head of another width is left out.
        cosine_weight: weight of the cosine term.
        mse_weight: weight of the squared error.
        map_weight: weight of the last maps' term; 0 leaves it out.
        student_size: side in pixels to which the student's images are resized; by default the data's. The teacher is
            given the data's images.
        image_size: side of the data's images in pixels, for the shapes of the outputs where ``map_weight`` needs them.
        knn: number of nearest neighbours.
        num_classes: number of classes of the data, which is not used.
        channels: number of channels of the images that networks given by name, or any other ``nn.Module``, take.

    Other arguments: :class:`HSAKDModule`.

    Raises:
        UsageError: if the student's width or channels do not fit the teacher, for a teacher given by name without
            ``teacher_weights``, if nothing says how the teacher's images are normalised, and for options out of range.

    Examples:
        >>> teacher = create_network("resnet14", branches=False)  # a trained one, whose classes are not used
        >>> module = EmbeddingModule("resnet8", teacher, teacher_mean="data")
        >>> batch = torch.rand(4, 3, 32, 32), torch.full((4,), -1)
        >>> list(module.losses(batch)), module(batch[0]).shape
        (['loss_cosine', 'loss_mse'], torch.Size([4, 64]))
    """

    teacher_inputs: Learned
    uses_unlabelled = True
    classifies = False
    keeps_classes = False

    def __init__(
        self,
        network: Net,
        teacher: Net,
        teacher_weights: str | None = None,
        teacher_embedding: Part | None = None,
        teacher_size: int | None = None,
        teacher_mean: Sequence[float] | str | None = None,
        teacher_std: Sequence[float] | None = None,
        teacher_interpolation: Interpolation | None = None,
        teacher_classes: int = 100,
        weights: str | None = None,
        cosine_weight: float = 1.0,
        mse_weight: float = 1.0,
        map_weight: float = 0.0,
        student_size: int | None = None,
        image_size: int = 32,
        knn: int = 20,
        num_classes: int | None = None,
        channels: int = 3,
        **options: Unpack[TrainingOptions],
    ) -> None:
        require_trained("teacher_weights", teacher, teacher_weights)
        require(0 <= map_weight < math.inf, "map_weight", map_weight, "at least 0, and finite")
        require(knn >= 1, "knn", knn, "at least 1")
        for side in (teacher_size, student_size):
            check_image_size(1 if side is None else side)
        module, teacher_files = build_teacher(teacher, teacher_weights, teacher_classes, channels)
        learned = teacher_inputs(module, teacher_size, teacher_mean, teacher_std, teacher_interpolation, channels)
        encoder = as_encoder(module, teacher_embedding, learned.image_size, channels)
        shapes = shapes_of(encoder, learned.image_size)
        student = build_network(network, shapes.width, branches=False, channels=channels)
        require_fitting(student, encoder, shapes.width)
        weight_files = load_initial("weights", weights, student, new_head=None)
        super().__init__([student], ensemble=None, **options)
        self.set_loss_weights(loss_cosine=cosine_weight, loss_mse=mse_weight)
        self.map_projection = None
        if map_weight:
            self.set_loss_weights(loss_map=map_weight)
            self.map_projection = map_projection(student, shapes, student_size or image_size)
        self.weight_files = weight_files | teacher_files
        self.teacher = Frozen(encoder, *teacher_files.values())
        self.teacher_inputs = learned
        self.student_size = student_size
        self.knn = knn
        self.embeddings = Embeddings()

    def described(self, description: Description) -> Description:
        if self.student_size is None:
            return description
        resize = max(self.student_size, round(description.resize * self.student_size / description.image_size))
        return replace(description, image_size=self.student_size, resize=resize)

    @property
    def headline(self) -> str:
        """Name of the metric of the best epoch: without labels the mean cosine."""
        split = getattr(getattr(self._trainer, "datamodule", None), "splits", {}).get("val")
        labelled = split is None or bool((split.targets >= 0).any())
        return "val/acc" if labelled else "val/cosine"

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Pass once through both networks, for images (B, C, S, S); labels are ignored."""
        images, labels = batch[:2]
        teacher = self._teacher_output(images)  # first, as in StudentModule
        return self.terms(outputs_of(self.network, self._resized(images)), teacher, labels)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        terms = self._embedding_terms(student.logits, teacher)
        if self.map_projection is not None:
            terms["loss_map"] = map_loss(self.map_projection(student.features[-1]), teacher.features[-1])
        return terms

    def _embedding_terms(self, embedding: Tensor, teacher: NetworkOutput) -> dict[str, Tensor]:
        return {
            "loss_cosine": cosine_loss(embedding, teacher.embedding),
            "loss_mse": scaled_error(embedding, teacher.embedding),
        }

    def _resized(self, images: Tensor) -> Tensor:
        """Return the student's images: those of the data, or smaller ones."""
        size = self.student_size
        if size is None or size == images.shape[-1]:
            return images
        return F.interpolate(images, (size, size), mode="bilinear", antialias=size < images.shape[-1])

    def _teacher_output(self, images: Tensor) -> NetworkOutput:
        size = self.teacher_inputs.image_size
        smaller = size is not None and self.student_size is not None and size <= self.student_size
        return self.teacher(self._resized(images) if smaller else images)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of normalised images (B, C, S, S)."""
        return super().forward(self._resized(images))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the embeddings of a batch; in a fit, compare them with the teacher's."""
        self._prepare()
        images, labels = batch
        embedding = self._collect(images, labels)
        if self.trainer.state.fn == "fit":
            terms = self._embedding_terms(embedding, self._teacher_output(images))
            loss = sum(self.loss_weight(name) * term for name, term in terms.items())
            values = {"val/loss": loss, "val/cosine": 1 - terms["loss_cosine"]}
            self.log_dict(values, on_epoch=True, batch_size=len(images), sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        """Collect the embeddings of a batch, and return them as ``embedding`` (B, D)."""
        self._prepare()
        return {"embedding": self._collect(*batch)}

    def _collect(self, images: Tensor, labels: Tensor) -> Tensor:
        embedding = self.classify(0, self._resized(images))
        self.embeddings.update(embedding, labels)
        return embedding

    def on_validation_epoch_end(self) -> None:
        self._log_accuracies("val")

    def on_test_epoch_end(self) -> None:
        self._log_accuracies("test")

    def _log_accuracies(self, split: str) -> None:
        """Log how well the collected embeddings separate the classes, if there are at least two labelled images."""
        embeddings, labels = self.embeddings.compute()
        self.embeddings.reset()
        if not embeddings.isfinite().all():
            raise UsageError(
                f"the embeddings of the {split} images are NaN or infinite in epoch {self.current_epoch}: lower lr"
            )
        if len(labels) > 1:
            self.log(f"{split}/acc", knn_accuracy(embeddings, labels, self.knn), prog_bar=True)
            self.log(f"{split}/linear_acc", linear_accuracy(embeddings, labels))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.embeddings.reset()
        if stage == "fit":
            self.teacher.require_weights()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["embedding"] = self.num_classes  # its width

    def on_predict_start(self) -> None:
        raise UsageError(
            "EmbeddingModule predicts no classes: export it (hsakd export), and call load_student(FOLDER)(images) for "
            "embeddings"
        )


def build_teacher(
    teacher: Net, weights: str | None, classes: int, channels: int = 3
) -> tuple[nn.Module, dict[str, WeightFile]]:
    """Return a teacher and what is known of its weight file, by the option; timm's models without their class head."""
    if not isinstance(teacher, str) or not teacher.startswith("timm:"):
        if isinstance(teacher, nn.Module):
            network = unpacked(teacher)
        else:
            network = build_network(teacher, classes, branches=False, channels=channels)
        if weights is None:
            return network, {}
        loaded = network if isinstance(network, Network) else Encoder(network, channels=channels)
        return network, load_initial("teacher_weights", weights, loaded)
    model = create_model(teacher.removeprefix("timm:"), 0, channels)
    return model, load_headless(model, teacher, weights, channels)


def load_headless(model: Any, name: str, weights: str | None, channels: int = 3) -> dict[str, WeightFile]:
    """Load a weight file, or what timm publishes, into a timm model without class head; those of a head are left out.

    Returns what is known of the file, by the option; a file that does not exist is ``missing``.
    """
    if weights in (None, RANDOM):
        return {}
    if weights == PRETRAINED:
        try:
            file = WeightFile(PRETRAINED, weights=pretrained_weights(name, channels))
        except UsageError as error:
            return {"teacher_weights": WeightFile(PRETRAINED, missing=str(error))}
    elif not split_entry(str(weights))[0].exists():
        reason = f"weight file {weights} does not exist: check the path"
        return {"teacher_weights": WeightFile(str(weights), missing=reason)}
    else:
        file = read_weight_file(str(weights))
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{layer}." for layer in ([classifier] if isinstance(classifier, str) else classifier))
    tensors = unwrap(file.weights, file.path)
    kept = {key: tensor for key, tensor in tensors.items() if key in model.state_dict() or not key.startswith(heads)}
    load_weights(model, replace(file, weights=kept))
    return {"teacher_weights": replace(file, weights=None)}


def as_encoder(network: nn.Module, part: str | None, image_size: int | None, channels: int = 3) -> Network:
    """Return a network whose outputs have an embedding; raises UsageError for a part that there is not."""
    if isinstance(network, Network):
        part_without_branches = network.without_branches
        if shapes_of(part_without_branches, image_size).embedding is not None:
            require(part in (None, "pooled"), "teacher_embedding", part, "pooled, of this package's networks")
            return part_without_branches
        network = getattr(part_without_branches, "network", part_without_branches)
    return Encoder(network, part, image_size, channels)


def require_fitting(student: Network, teacher: Network, width: int) -> None:
    """Raise UsageError unless a student takes images of the teacher's channels and returns embeddings of its width."""
    if student.num_classes != width:
        raise UsageError(
            f"network: the student returns {counted(student.num_classes, 'number')}, the teacher's embedding has "
            f"{width}: create the student with num_classes={width}, or give its name"
        )
    if student.in_channels != teacher.in_channels:
        raise UsageError(
            f"channels: the student takes images of {counted(student.in_channels, 'channel')}, the teacher of "
            f"{teacher.in_channels}: choose a teacher that fits, or create both with the same channels"
        )


def teacher_inputs(
    network: nn.Module,
    size: int | None,
    mean: Sequence[float] | str | None,
    std: Sequence[float] | None,
    interpolation: str | None,
    channels: int = 3,
) -> Learned:
    """Return what images of ``channels`` a teacher takes: as the options say, or else its weight file or timm.

    Raises UsageError if nothing says how they are normalised.
    """
    learned = learned_from(network)
    if learned.mean is not None and len(learned.mean) != channels:
        learned = replace(learned, mean=None, std=None)  # timm's, of red, green and blue
    config = getattr(network, "pretrained_cfg", None) or {}
    if learned.image_size is None and "input_size" in config:
        learned = replace(learned, image_size=int(config["input_size"][-1]))
    if interpolation is None:
        interpolation = config.get("interpolation")
    listed = numbers(channels)
    names = ["imagenet", "data"] if channels == len(MEAN) else ["data"]
    changes: dict[str, Any] = {"interpolation": "bicubic" if interpolation == "bicubic" else "bilinear"}
    if size is not None:
        changes["image_size"] = size
    if mean is None:
        require(std is None, "teacher_std", std, "left out without teacher_mean")
        if learned.mean is None:
            raise UsageError(
                "teacher_mean: nothing says how the teacher's images were normalised, as its weight file does not (nor "
                f"do lightly-train's exports): set teacher_mean and teacher_std, {listed} each, or teacher_mean to "
                f"{', or to '.join(names)} for the student's images"
            )
    elif isinstance(mean, str):
        require(mean in names, "teacher_mean", mean, f"{', '.join(names)} or {listed}")
        require(std is None, "teacher_std", std, f"left out with teacher_mean {mean}")
        changes |= {"mean": MEAN, "std": STD} if mean == "imagenet" else {"mean": None, "std": None}
    else:
        require(std is not None, "teacher_std", std, f"{listed} if teacher_mean is")
        check_statistics("teacher", mean, std or (), channels)
        changes |= {"mean": tuple(mean), "std": tuple(std or ())}
    origin = "the options" if mean is not None or size is not None else learned.origin
    return replace(learned, origin=origin, class_names=None, **changes)


def map_projection(student: Network, teacher: NetworkOutput, image_size: int) -> nn.Conv2d:
    """Return a 1x1 convolution from the channels of the student's last map to those of the teacher's.

    Raises UsageError if a network has no map.
    """
    if not teacher.features:
        raise UsageError("map_weight: the teacher returns no map (B, C, H, W): leave it out")
    channels = student.shapes(image_size, "features").features[-1].shape[1]
    return nn.Conv2d(channels, teacher.features[-1].shape[1], 1)
