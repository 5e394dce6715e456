"""A student distilled from a frozen teacher (Sec. 3.3, "Training the student network")."""

import math
from typing import Any, cast

import pytorch_lightning as pl
import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.modules.answers import AnswersType, KeptOutput, TeacherAnswers, check_answers
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, require_own_weights, require_trained
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.options import BranchOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.network import outputs_of
from hsakd_pl.networks.weights import describe
from hsakd_pl.ops import Transforms, joint_kd_loss, kd_loss
from hsakd_pl.signatures import Unpack


class StudentModule(HSAKDModule):
    """Minimise CE(class logits, y) + KD(class logits) + sum over branches KD(joint logits), Eq. 5 to 7.

    The teacher stays in eval mode and is not a submodule: optimizer and checkpoint do not contain it. A network given
    as the teacher is frozen in place. Without branches, and on untransformed images, this is Hinton's distillation.

    Source: Yang et al., IJCAI 2021, Eq. 5 to 7.

    Args:
        network: name (see :func:`hsakd_pl.create_network`) or network.
        teacher: name or network.
        weights: weight file that the student starts from, or ``pretrained`` for the weights that timm publishes. Where
            a file holds several, such as averages, ``FILE#NAME`` takes those under a name; likewise for the teacher.
        teacher_weights: weight file of a teacher given by name, ``pretrained`` or ``random``; only ``fit`` needs it.
        teacher_sha256: SHA-256 that this file must have; by default that of the run that ``fit`` resumes.
        num_classes: number of classes of networks given by name, or of any other ``nn.Module``.
        transforms: transformations of networks given by name: an object, ``rotations``, ``flips``, ``colours``, an
            import path, or a product of these.
        temperature: temperature of both KD terms; T = 3: Sec. 4.1 of the paper.
        ce_weight: weight of the cross-entropy on untransformed images.
        kd_weight: weight of the class heads' KD.
        joint_kd_weight: weight of the branches' KD; 0 leaves the branches out.
        transform_images: compute the KD terms under all transformations, not only on the untransformed images.
        new_head: keep the last layers of the class head and of the branches freshly initialised, for ``weights`` of
            other classes.
        teacher_answers: folder in which the teacher's class logits for every training batch are kept, so that later
            runs on the same batches read them instead of asking the teacher, with equal losses bit by bit (with
            ``compile`` up to rounding); only for methods that need nothing else of the teacher.
        teacher_answers_dtype: type in which they are kept: ``float32``, or ``float16``, which rounds them.
        teacher_answers_gb: largest size of that folder, in 10^9 bytes.
        teacher_answers_top: keep only this number of the largest logits of each image, and train with equal logits of
            all other classes, which have the same probability together at a temperature of 1. This changes the results.
        channels: number of channels of the images that networks given by name, or any other ``nn.Module``, take.

    Other arguments: :class:`HSAKDModule`.

    Raises:
        UsageError: if the two networks differ in classes, branches or transforms, for a teacher given by name without
            ``teacher_weights``, and for a temperature of 0 or less.

    Examples:
        >>> teacher = TeacherModule("resnet14", num_classes=10)
        >>> module = StudentModule("resnet8", teacher.network, num_classes=10)
        >>> batch = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_joint_kd']
    """

    uses_unlabelled = True
    needs_only_logits: bool = False  # of the teacher, in a training step

    def __init__(
        self,
        network: str | nn.Module,
        teacher: str | nn.Module,
        weights: str | None = None,
        teacher_weights: str | None = None,
        teacher_sha256: str | None = None,
        num_classes: int = 100,
        transforms: str | Transforms | None = None,
        temperature: float = 3.0,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        joint_kd_weight: float = 1.0,
        transform_images: bool = True,
        new_head: bool = False,
        teacher_answers: str | None = None,
        teacher_answers_dtype: AnswersType = "float32",
        teacher_answers_gb: float = 20.0,
        teacher_answers_top: int | None = None,
        channels: int = 3,
        **options: Unpack[BranchOptions],
    ) -> None:
        require(0 < temperature < math.inf, "temperature", temperature, "above 0")
        require(joint_kd_weight >= 0, "joint_kd_weight", joint_kd_weight, "at least 0")
        check_answers(teacher_answers, teacher_answers_dtype, teacher_answers_gb, teacher_answers_top)
        require_trained("teacher_weights", teacher, teacher_weights)
        branches = joint_kd_weight > 0
        if branches and not transform_images:
            raise UsageError("transform_images is off, but branches need them: set joint_kd_weight to 0 as well")
        student = build_network(network, num_classes, branches, transforms, channels)
        weight_files = load_initial("weights", weights, student, new_head)
        super().__init__([student], **options)
        self.set_loss_weights(loss_ce=ce_weight, loss_kd=kd_weight)
        if branches:
            self.set_loss_weights(loss_joint_kd=joint_kd_weight)
        self.temperature = temperature
        self.transform_images = transform_images
        if transform_images:
            self.views = self.network.transforms.count
        built_teacher = build_network(teacher, num_classes, branches, transforms, channels)
        require_own_weights([student, built_teacher], "the student and the teacher")
        teacher_files = load_initial("teacher_weights", teacher_weights, built_teacher)
        self.weight_files = weight_files | teacher_files
        self.teacher = Frozen(built_teacher, *teacher_files.values())
        self._check_pair()
        self.expected_sha256 = teacher_sha256
        for file in teacher_files.values():
            if file.sha256 is not None:
                self.hparams["teacher_sha256"] = file.sha256
        self.answers: TeacherAnswers | None = None
        if teacher_answers is not None:
            self.answers = TeacherAnswers(
                self.teacher, teacher_answers, teacher_answers_dtype, teacher_answers_gb, teacher_answers_top
            )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the callbacks of the base class, and the one that keeps the teacher's answers."""
        return [*super().configure_callbacks(), *([] if self.answers is None else [self.answers])]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.answers is not None and self.answers.active:
            images, labels = batch
            self._prepare()
            batch = (images, labels, self.answers.ask(images, self.current_epoch, batch_idx))
        return super().training_step(batch, batch_idx)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Pass once through both networks; a batch may end in the teacher's class logits (B, N), which replace it.

        The teacher is first: what its layers need is free again before the student keeps maps for its gradients.
        """
        images, labels, *answers = batch
        inputs = self.network.transforms(images) if self.transform_images else images
        teacher = self._teacher_output(inputs, *answers)
        return self.terms(outputs_of(self.network, inputs), teacher, labels)

    def _teacher_output(self, inputs: Tensor, kept_logits: Tensor | None = None) -> NetworkOutput:
        if kept_logits is None:
            return self.teacher(inputs)
        return cast(NetworkOutput, KeptOutput(kept_logits, type(self).__name__))

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        terms = super().terms(student, teacher, labels)
        terms["loss_kd"] = kd_loss(student.logits, teacher.logits, self.temperature)
        if student.joint_logits:
            terms["loss_joint_kd"] = joint_kd_loss(student.joint_logits, teacher.joint_logits, self.temperature)
        return terms

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.teacher.require_weights()
            self._check_teacher_file()
            require_own_weights([self.network, self.teacher.network], "the student and the teacher")
            data = getattr(self.trainer, "datamodule", None)
            if self.answers is not None and getattr(data, "unlabelled", None) is not None:
                raise UsageError(
                    "teacher_answers must be left out with unlabelled images, whose answers it does not keep"
                )
            if self.answers is not None and not self.needs_only_logits:
                raise UsageError(
                    f"teacher_answers keeps the teacher's class logits alone, and {type(self).__name__} needs more "
                    "(maps, embeddings or transformed images): leave teacher_answers out; a method of your own that "
                    "needs the logits alone sets needs_only_logits = True"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == "fit" and self.expected_sha256 is None:
            self.expected_sha256 = checkpoint.get("hyper_parameters", {}).get("teacher_sha256")
            self._check_teacher_file()

    def _check_teacher_file(self) -> None:
        path = self.hparams.get("teacher_weights")
        sha256 = self.hparams.get("teacher_sha256")
        if self.expected_sha256 not in (None, sha256):
            raise UsageError(
                f"teacher_weights {path} has sha256 {sha256}, teacher_sha256 asks for {self.expected_sha256}: "
                "name the teacher that the run began with, or set teacher_sha256 to the hash of the other"
            )

    def _check_pair(self) -> None:
        student = self.network
        teacher = self.teacher.network
        pairs: dict[str, tuple[Any, Any]] = {
            "num_classes": (student.num_classes, teacher.num_classes),
            "channels": (student.in_channels, teacher.in_channels),
            "branches": (len(student.branches), len(teacher.branches)),
        }
        if student.branches:
            pairs["transforms"] = (student.transforms, teacher.transforms)
        for property_name, (of_student, of_teacher) in pairs.items():
            if of_student != of_teacher:
                raise UsageError(
                    f"the student, {describe(student)}, and the teacher, {describe(teacher)}, differ in "
                    f"{property_name} ({of_student} and {of_teacher}): choose a teacher that fits, or "
                    "joint_kd_weight=0 without branches"
                )
