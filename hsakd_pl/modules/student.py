"""A student distilled from a frozen teacher (Sec. 3.3, "Training the student network")."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.modules.base import Batch, HSAKDModule, as_output
from hsakd_pl.modules.build import build_network, freeze, not_by_name
from hsakd_pl.modules.inference import InferenceNetwork
from hsakd_pl.ops import kd_loss, rotate
from hsakd_pl.weights import describe, file_sha256


class StudentModule(HSAKDModule):
    """CE(class logits of rotation 0, y) + KD(class logits) + sum over branches KD(joint logits), Eq. 5 to 7.

    The KD terms cover all rotations, or none with ``transform_images`` off: then, without branches, it is Hinton's KD.
    The teacher stays in eval mode and out of the optimizer, the checkpoint and everything else that Lightning walks
    over. ``teacher_sha256`` pins its weight file: checkpoints record the hash, and ``fit`` refuses another file.
    A teacher given as a network is frozen in place; ``fit`` asks a copy of it, made ready for inference. Raises
    UsageError where the two differ in classes or branches.
    """

    def __init__(
        self,
        network: str | nn.Module,
        teacher: str | nn.Module,
        weights: str | None = None,
        teacher_weights: str | None = None,
        teacher_sha256: str | None = None,
        num_classes: int = 100,
        temperature: float = 3.0,  # T = 3: Sec. 4.1 of the paper
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        joint_kd_weight: float = 1.0,
        transform_images: bool = True,
        **kwargs: Any,
    ) -> None:
        branches = joint_kd_weight > 0
        built = build_network(network, num_classes, weights, branches)
        loss_weights = {"loss_ce": ce_weight, "loss_kd": kd_weight, "loss_joint_kd": joint_kd_weight}
        super().__init__([built], loss_weights, num_classes, **kwargs)
        self.save_hyperparameters(ignore=not_by_name(network=network, teacher=teacher))
        self.temperature, self.transform_images = temperature, transform_images
        self.frozen = (freeze(build_network(teacher, num_classes, teacher_weights, branches)),)
        self.taught_by: tuple[nn.Module, ...] = self.frozen  # a tuple, so that it is no submodule either
        self._check_pair()
        self.expected_sha256 = teacher_sha256
        if teacher_weights is not None:
            self.hparams["teacher_sha256"] = file_sha256(teacher_weights)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.trainer.precision)
        self.taught_by = (InferenceNetwork(self.teacher, dtype),)

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self.taught_by = self.frozen

    def setup(self, stage: str) -> None:
        super().setup(stage)
        found, path = (self.hparams.get(name) for name in ("teacher_sha256", "teacher_weights"))
        if stage == "fit" and self.expected_sha256 not in (None, found):
            raise UsageError(
                f"teacher_weights {path} has sha256 {found}, teacher_sha256 asks for {self.expected_sha256}: "
                "name the teacher that the run began with, or set teacher_sha256 to null"
            )

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher."""
        return self.frozen[0]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        inputs = rotate(images) if self.transform_images else images
        with torch.no_grad():
            taught = as_output(self.taught_by[0](inputs))
        learnt = as_output(self(inputs))
        terms = {
            "loss_ce": F.cross_entropy(learnt.logits[: len(labels)], labels),
            "loss_kd": kd_loss(learnt.logits, taught.logits, self.temperature),
        }
        if learnt.joint_logits:
            ours, theirs = (torch.stack(output.joint_logits) for output in (learnt, taught))
            terms["loss_joint_kd"] = kd_loss(ours, theirs, self.temperature)
        return terms

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StudentModule":
        self.teacher._apply(fn)  # not a submodule, yet it follows to every device and dtype
        return super()._apply(fn, recurse)

    def _check_pair(self) -> None:
        pair = (self.network, self.teacher)
        classes = [getattr(network, "num_classes", self.num_classes) for network in pair]
        branches = [len(getattr(network, "branches", ())) for network in pair]
        for what, (student, teacher) in {"num_classes": classes, "branches": branches}.items():
            if student != teacher:
                raise UsageError(
                    f"the student, {describe(pair[0])}, and the teacher, {describe(pair[1])}, differ in {what} "
                    f"({student} and {teacher}): choose a teacher that fits, or joint_kd_weight=0 without branches"
                )
