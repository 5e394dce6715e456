"""What all modules share of training: loss terms, optimizer, schedule, logging. A method overrides some of it."""

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.optim.lr_scheduler import MultiStepLR

from hsakd_pl.data.description import read_description
from hsakd_pl.errors import UsageError, require
from hsakd_pl.modules.ensembles import Views
from hsakd_pl.modules.evaluated import Batch, EvaluatedModule
from hsakd_pl.modules.means import EpochMeans
from hsakd_pl.modules.optimization import (
    OptimizerMaker,
    Scheduler,
    check_rates,
    check_same_rates,
    make_sgd,
    one_schedule,
    parameter_groups,
    with_warmup,
)
from hsakd_pl.modules.options import save_options
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.weights import match_weights
from hsakd_pl.ops import all_finite, cross_entropy, total
from hsakd_pl.signatures import FullSignature


class HSAKDModule(EvaluatedModule):
    """Trains and evaluates one or more networks of the same classes; as it stands, by cross-entropy alone.

    A method overrides :meth:`losses`, one pass through its networks, and :meth:`terms`, what it makes of their outputs.
    The defaults are the paper's recipe for CIFAR-100 (Sec. 4.1).

    Args:
        networks: the networks that are trained.
        lr: learning rate of SGD.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        weight_decay: of SGD, on all weights.
        milestones: epochs, counted after the warm-up, where ``lr`` falls to a tenth.
        warmup_epochs: in which ``lr`` grows linearly.
        optimizer: makes another optimizer from the parameters, in place of SGD and its four options: a class path with
            its arguments in a configuration, a ``functools.partial`` in Python.
        lr_scheduler: makes another schedule from the optimizer, in place of warm-up and milestones. It steps once an
            epoch, one that watches a metric on ``val/loss`` unless it names another. Checkpoints hold the state of both
            but not the functions: give them again to ``load_from_checkpoint`` to go on training.
        branch_metrics_every: joint and class accuracies of the branches, over all transformations, are measured in
            every n-th epoch's validation and in every test, at several times the cost of the class head's; 0: never.
        fast: whether ``fit`` uses what makes it fast (:mod:`hsakd_pl.fast`); the same numbers up to rounding.
        compile: whether ``fit`` compiles the training step and the validation of the class head, with CUDA graphs on
            one GPU; a dictionary is settings of PyTorch's code generator (``torch._inductor.config``) for it.
        backbone_lr: rate, on the same schedule, of all but branches and the class head's last layer, for fine-tuning.
        ensemble: whether ``test`` also reports what all heads together make of the images as they are (``identity``),
            or under every transformation too (``all``), and early exits, each with its multiply-adds; needs branches.
        loss_weights: weights of loss terms by name, such as ``loss_mine``, in place of the module's own; a term without
            a weight counts 1.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        lr: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        milestones: Sequence[int] = (150, 180, 210),
        warmup_epochs: int = 0,
        optimizer: OptimizerMaker | None = None,
        lr_scheduler: Scheduler | None = None,
        branch_metrics_every: int = 10,
        fast: bool = True,
        compile: bool | dict[str, Any] = False,
        backbone_lr: float | None = None,
        ensemble: Views | None = None,
        loss_weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__(networks, branch_metrics_every, ensemble)
        if lr_scheduler is not None and warmup_epochs:
            raise UsageError(f"warmup_epochs is {warmup_epochs}: lr_scheduler replaces the warm-up, set one of the two")
        if compile and not fast:
            raise UsageError("compile has no effect with fast=False: leave one of the two out")
        check_rates(lr, momentum, nesterov, weight_decay, milestones, warmup_epochs, backbone_lr)
        require(branch_metrics_every >= 0, "branch_metrics_every", branch_metrics_every, "at least 0")
        save_options(self)
        self.chosen_weights = loss_weights or {}
        self.loss_weights: dict[str, float] = {}
        self.set_loss_weights(**self.chosen_weights)
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay
        self.milestones, self.warmup_epochs, self.backbone_lr = tuple(milestones), warmup_epochs, backbone_lr
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.fast, self.compile_step = fast, compile
        self.means = EpochMeans()

    __signature__ = FullSignature()

    def set_loss_weights(self, **weights: float) -> None:
        """Set the weights of loss terms, by name; the option ``loss_weights`` takes precedence.

        Raises UsageError for a weight that is negative or not finite.
        """
        for name, weight in weights.items():
            option = f"{name.removeprefix('loss_')}_weight"
            if option not in self.hparams:
                option = f"loss_weights.{name}"
            require(0 <= weight < math.inf, option, weight, "at least 0, and finite")
        self.loss_weights |= weights | self.chosen_weights

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Pass once through the networks and name the loss terms, for images (B, 3, S, S) and labels (B,)."""
        images, labels = batch
        return self.terms(self.network.outputs(images), None, labels)

    def terms(self, student: NetworkOutput, teacher: Any, labels: Tensor) -> dict[str, Tensor]:
        """Return the named loss terms, unweighted scalars.

        A subclass adds a term by ``return super().terms(student, teacher, labels) | {"loss_mine": ...}``.

        Args:
            student: outputs of the trained network for B images, or for the M * B transformed images.
            teacher: outputs of the teacher for the same images; None in a module without a teacher.
            labels: classes (B,) of the untransformed images.
        """
        return {"loss_ce": cross_entropy(student.logits[: len(labels)], labels)}

    def loss_weight(self, name: str) -> float:
        """Give the factor of a term in the current epoch."""
        return self.loss_weights.get(name, 1.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._guard()
        self._check(batch, batch_idx)
        try:
            terms = self.losses(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            message = f"batch_size: a batch norm cannot train on {len(batch[0])} image of this size, choose another"
            raise UsageError(message) from error
        if unknown := self.loss_weights.keys() - terms.keys():
            raise UsageError(f"loss_weights names {', '.join(sorted(unknown))}; the terms are {', '.join(terms)}")
        loss = total(self.loss_weight(name) * term for name, term in terms.items())
        if loss.device.type == "cpu":  # elsewhere reading it would stall the device: once an epoch is enough
            self._raise_unless_finite(loss, batch[0])
        if self._trainer is not None:
            self.means.add({"loss": loss, **terms}, len(batch[1]), self.log)
        return loss

    def configure_optimizers(self) -> Any:
        """Optimize what is not frozen, at rates that ``lr_scheduler``, or warm-up and milestones, decide."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        options = {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": self.nesterov}
        make = self.optimizer or (lambda parameters: make_sgd(self, parameters, self.lr, self.fast, **options))
        optimizer = make(parameter_groups(trained, self.networks, self.backbone_lr))
        if self.lr_scheduler is not None:
            return one_schedule(optimizer, self.lr_scheduler(optimizer))
        if self.warmup_epochs:
            return with_warmup(optimizer, self.milestones, self.warmup_epochs, self.trainer)
        return one_schedule(optimizer, MultiStepLR(optimizer, self.milestones, gamma=0.1))

    def configure_callbacks(self) -> list[pl.Callback]:
        """Bring along what makes a fit fast."""
        from hsakd_pl.fast import Fast  # above this file in the house

        return [Fast(self.compile_step)] if self.fast else []

    def setup(self, stage: str) -> None:
        self.means.clear()  # of a fit that was interrupted
        data = getattr(self.trainer, "datamodule", None)
        if (found := getattr(data, "num_classes", self.num_classes)) != self.num_classes:
            raise UsageError(
                f"the network has {self.num_classes} classes, {type(data).__name__} has {found}: "
                f"set num_classes={found} or choose the data the network was made for"
            )
        if stage == "fit":
            self.description = getattr(data, "description", None)
        if (size := getattr(data, "image_size", None)) is not None:
            for network in self.networks:
                network.check_image_size(size, size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all_finite(checkpoint["state_dict"].values()):
            raise self._diverged()
        checkpoint["transforms"] = self._transforms()
        checkpoint["networks"] = [network.name for network in self.networks]
        if self.description is not None:
            checkpoint["data"] = self.description.saved()
        if not self.trainer.is_last_batch:
            checkpoint["means"] = self.means.saved(self.all_gather)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        origin = f"checkpoint {getattr(self._trainer, 'ckpt_path', None) or 'given'}"
        match_weights(self, checkpoint["state_dict"], self.strict_loading, origin)
        own = self._transforms()
        if (saved := checkpoint.get("transforms", own)) != own:
            raise UsageError(f"{origin} was trained with the transforms {saved}, not {own}: choose those")
        if "weights" in self.weight_files and self.weight_files["weights"].missing:
            del self.weight_files["weights"]  # the checkpoint replaces them
        if "data" in checkpoint:
            self.description = read_description(checkpoint["data"], origin)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            check_same_rates(checkpoint.get("hyper_parameters", {}), self.hparams)
            self.means.restore(checkpoint.get("means", {}), self.trainer.global_rank, self.trainer.world_size)

    def on_fit_start(self) -> None:
        self._guard()

    def on_validation_start(self) -> None:  # before the epoch's checkpoints are written
        if self.trainer.state.fn == "fit":
            self._raise_unless_means_finite()

    def on_train_epoch_end(self) -> None:
        self._raise_unless_means_finite()

    def _raise_unless_means_finite(self) -> None:
        if "loss" in self.means:
            self._raise_unless_finite(self.means["loss"].total)

    def _raise_unless_finite(self, loss: Tensor, images: Tensor | None = None) -> None:
        if not loss.isfinite():
            if images is not None and not images.isfinite().all():
                raise UsageError(f"images of epoch {self.current_epoch} hold NaN or infinite numbers: mend the data")
            raise self._diverged()

    def _diverged(self) -> UsageError:
        return UsageError(
            f"the loss became NaN or infinite in epoch {self.current_epoch}: lower lr, add warmup_epochs or use "
            "trainer.precision 32-true; checkpoints of earlier epochs are intact"
        )
