"""The base of all methods with a teacher: one pass through both networks, CE, KD, and the terms of a method."""

from collections.abc import Mapping
from functools import partial
from math import prod
from types import MappingProxyType

import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.options import StudentOptions
from hsakd_pl.methods.schedules import Schedule, ScheduledFactor, linear_warmup
from hsakd_pl.modules import StudentModule
from hsakd_pl.modules.build import Net as Net
from hsakd_pl.modules.evaluated import Batch
from hsakd_pl.modules.provenance import learned_by
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.signatures import Unpack

KD_TERMS = {"loss_ce", "loss_kd"}  # the terms of every method, whose weights are constant


class DistilledModule(StudentModule):
    """Minimise CE + KD of class logits on untransformed images, without branches.

    A method derives from this class and extends :meth:`terms`. Modules that it registers are trained and resumed with
    the student; ``load_weights(network, checkpoint)`` ignores them. Weights follow the epochs by
    :meth:`schedule_weights`, factors inside a loss by a :class:`hsakd_pl.methods.schedules.ScheduledFactor`.

    Source: Hinton et al. 2015.

    Args:
        network: registry name of the student, or a network; its branches are ignored.
        teacher: registry name of the teacher, or a network.
        weight_warmup_epochs: epochs over which the weights that the method sets itself grow linearly; those of CE and
            KD, and of terms that a subclass adds without a weight, are constant.
        image_size: height and width of the images in pixels; the shapes of both networks' outputs depend on it.
        temperature: temperature of the KD term; T = 4 in the field's tables.
        ce_weight: weight of the cross-entropy.
        kd_weight: weight of the KD term.

    Other arguments: :class:`hsakd_pl.StudentModule`.

    Raises:
        UsageError: for a negative ``weight_warmup_epochs``, and as :class:`hsakd_pl.StudentModule` does.

    Examples:
        >>> class Regressed(DistilledModule):
        ...     def __init__(self, *args, regressed_weight: float = 2.0, **options):
        ...         super().__init__(*args, **options)
        ...         self.set_loss_weights(loss_regressed=regressed_weight)
        ...         student_shapes, teacher_shapes = self.shapes("embedding")
        ...         self.regressor = torch.nn.Linear(student_shapes.width, teacher_shapes.width)
        ...
        ...     def terms(self, student, teacher, labels):
        ...         error = self.regressor(student.embedding) - teacher.embedding
        ...         return super().terms(student, teacher, labels) | {"loss_regressed": error.square().mean()}
    """

    weight_warmup_epochs = 0
    weight_schedules: Mapping[str, tuple[Schedule, ...]] = MappingProxyType({})  # factors of the weights, by term

    def __init__(
        self,
        network: Net,
        teacher: Net,
        weight_warmup_epochs: int = 0,
        image_size: int = 32,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        **options: Unpack[StudentOptions],
    ) -> None:
        super().__init__(
            network,
            teacher,
            temperature=temperature,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            joint_kd_weight=0.0,
            transform_images=False,
            **options,
        )
        require(weight_warmup_epochs >= 0, "weight_warmup_epochs", weight_warmup_epochs, "at least 0")
        self.weight_warmup_epochs = weight_warmup_epochs
        self.image_size = image_size

    def set_loss_weights(self, **weights: float) -> None:
        super().set_loss_weights(**weights)
        new_terms = weights.keys() - KD_TERMS - self.weight_schedules.keys()
        self.schedule_weights(partial(linear_warmup, epochs=self.weight_warmup_epochs), *new_terms)

    def schedule_weights(self, schedule: Schedule, *names: str) -> None:
        """Multiply the weights of terms by a factor of the epoch; all schedules of a term apply.

        Args:
            schedule: maps an epoch, counted from 1, to the factor; it must be picklable.
            names: names of the terms.
        """
        extended = {name: (*self.weight_schedules.get(name, ()), schedule) for name in names}
        self.weight_schedules = {**self.weight_schedules, **extended}

    def loss_weight(self, name: str) -> float:
        schedules = self.weight_schedules.get(name, ())
        return super().loss_weight(name) * prod(schedule(self.current_epoch + 1) for schedule in schedules)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        for part in self.modules():
            if isinstance(part, ScheduledFactor):
                part.set_epoch(self.current_epoch + 1)
        return super().training_step(batch, batch_idx)

    def linear_heads(self) -> tuple[nn.Linear, nn.Linear]:
        """Return the layers that map the embeddings of student and teacher to class logits.

        Raises UsageError if a network does not name it.
        """
        return self.network.linear_head, self.teacher.network.linear_head

    def shapes(self, *parts: str) -> tuple[NetworkOutput, NetworkOutput]:
        """Return the outputs of student and teacher for one image, without values, for their shapes.

        The teacher's image has the size that the teacher was trained on, if that is known.

        Args:
            parts: outputs that the method needs: ``features``, ``embedding``, ``pooled_map``.

        Raises UsageError if a network lacks one of them.
        """
        student = self.network.shapes(self.image_size, *parts)
        teacher_size = learned_by(self, self.teacher).image_size or self.image_size
        teacher = self.teacher.network.shapes(teacher_size, *parts)
        return student, teacher
