"""The base of all modules: loss terms, optimizer, schedule, logging and checkpoints."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import MultiStepLR

from hsakd_pl.cpu.memory import ReusedMemory
from hsakd_pl.data.description import read_description
from hsakd_pl.errors import UsageError, require
from hsakd_pl.fast import Fast
from hsakd_pl.files.weights import WeightFile, shorten
from hsakd_pl.modules.accumulation import log_compared_images, window_weight
from hsakd_pl.modules.averages import warn_of_slow_averages
from hsakd_pl.modules.ensembles import Views
from hsakd_pl.modules.evaluated import Batch, EvaluatedModule
from hsakd_pl.modules.frozen import FrozenGuard, frozen_in
from hsakd_pl.modules.means import EpochMeans
from hsakd_pl.modules.modes import OwnModes
from hsakd_pl.modules.norms import checked_batch_norms
from hsakd_pl.modules.optimization import (
    OptimizerMaker,
    Scheduler,
    can_fuse,
    check_rates,
    check_same_rates,
    check_schedule,
    make_optimizer,
    one_schedule,
    parameter_groups,
    with_warmup,
)
from hsakd_pl.modules.options import save_options
from hsakd_pl.modules.provenance import (
    check_channels,
    check_description,
    check_fit,
    check_weights,
    data_of,
    feed_teachers,
    log_changed_images,
)
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.networks.network import outputs_of
from hsakd_pl.networks.weights import match_weights
from hsakd_pl.ops import all_finite, cross_entropy, total
from hsakd_pl.signatures import FullSignature


class HSAKDModule(EvaluatedModule):
    """Train and evaluate one or more networks of the same classes; this class itself uses cross-entropy alone.

    A method overrides :meth:`losses`, the one pass through its networks, and :meth:`terms`, the loss terms of their
    outputs. The defaults are the paper's recipe for CIFAR-100 (Sec. 4.1).

    Source: Yang et al., IJCAI 2021, Sec. 4.1 (the defaults).

    Args:
        networks: networks to train.
        lr: learning rate of SGD.
        momentum: momentum of SGD.
        nesterov: use Nesterov momentum.
        weight_decay: weight decay of SGD, applied to all parameters.
        milestones: epochs, counted after the warm-up, at which ``lr`` is divided by 10.
        warmup_epochs: number of epochs in which ``lr`` grows linearly from almost 0.
        optimizer: function that makes another optimizer from the parameters; it replaces SGD and its four options. In a
            configuration a class path with its arguments, in Python for example a ``functools.partial``.
        lr_scheduler: function that makes another schedule from the optimizer; it replaces warm-up and milestones. It
            steps once per epoch; a schedule that watches a metric watches ``val/loss`` unless it names another.
            Checkpoints hold the state of optimizer and schedule but not these functions: pass them to
            ``load_from_checkpoint`` again to resume training.
        branch_metrics_every: measure the joint and class accuracies of the branches, over all transformations, in
            every n-th validation and in every test; 0 switches them off. They cost several times the class head's.
        fast: use the faster implementations of :mod:`hsakd_pl.fast` in ``fit``; results are equal up to rounding.
        compile: compile the training step and the validation of the class head in ``fit``, with CUDA graphs on a single
            GPU; a dictionary holds settings of PyTorch's code generator (``torch._inductor.config``).
        backbone_lr: learning rate, on the same schedule, of all parameters but those of the branches and of the class
            head's last layer, for fine-tuning.
        ensemble: report ensembles of all heads and early exits in ``test``, with their multiply-adds: on the
            untransformed images (``identity``) or under every transformation too (``all``); needs branches.
        loss_weights: weights of loss terms by name, such as ``loss_mine``, in place of the module's own; a term without
            a weight counts 1.

    Raises:
        UsageError: for rates, momentum or milestones out of range, for options that have no effect together, and for a
            loss weight that is negative or not finite.

    Examples:
        >>> class ConfidentModule(BaselineModule):
        ...     def terms(self, student, teacher, labels):
        ...         entropy = torch.distributions.Categorical(logits=student.logits).entropy().mean()
        ...         return super().terms(student, teacher, labels) | {"loss_entropy": entropy}
        >>> module = ConfidentModule("resnet8", num_classes=10, loss_weights={"loss_entropy": 0.1})
        >>> batch = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_entropy']
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
        self._check_loss_weights(self.chosen_weights)
        self.loss_weights = dict(self.chosen_weights)
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.milestones = tuple(milestones)
        self.warmup_epochs = warmup_epochs
        self.backbone_lr = backbone_lr
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.fast = fast
        self.compile_step = compile
        self.means = EpochMeans()
        # not finite from the beginning, such as the mask of an attention
        self.infinite = {name for name, buffer in self.named_buffers() if not all_finite([buffer])}

    __signature__ = FullSignature()

    def set_loss_weights(self, **weights: float) -> None:
        """Set the weights of loss terms, by name; the option ``loss_weights`` takes precedence.

        Args:
            weights: weights, at least 0, by the names of the terms.

        Raises:
            UsageError: for a weight that is negative or not finite.

        Examples:
            >>> module = BaselineModule("resnet8", num_classes=10)
            >>> module.set_loss_weights(loss_ce=0.5)
            >>> module.loss_weight("loss_ce")
            0.5
        """
        self._check_loss_weights(weights)
        self.loss_weights |= weights | self.chosen_weights

    def _check_loss_weights(self, weights: dict[str, float]) -> None:
        for name, weight in weights.items():
            option = f"{name.removeprefix('loss_')}_weight"
            if option not in self.hparams:
                option = f"loss_weights.{name}"
            require(0 <= weight < math.inf, option, weight, "at least 0, and finite")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Pass once through the networks and return the loss terms.

        Args:
            batch: normalised images (B, C, S, S) and labels (B,).

        Returns:
            Unweighted scalars by name, such as ``loss_ce``.

        Examples:
            >>> module = BaselineModule("resnet8", num_classes=10)
            >>> module.losses((torch.rand(4, 3, 32, 32), torch.arange(4)))["loss_ce"].shape
            torch.Size([])
        """
        images, labels = batch
        return self.terms(outputs_of(self.network, images), None, labels)

    def terms(self, student: NetworkOutput, teacher: Any, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss terms of the networks' outputs.

        A subclass adds a term by ``return super().terms(student, teacher, labels) | {"loss_mine": ...}``.

        Args:
            student: outputs of the trained network for B images, or for the M * B transformed images.
            teacher: outputs of the teacher for the same images; None in a module without a teacher.
            labels: classes (B,) of the untransformed images.

        Returns:
            Unweighted scalars by name.

        Examples:
            >>> module = BaselineModule("resnet8", num_classes=10)
            >>> student = module.network.outputs(torch.rand(4, 3, 32, 32))
            >>> list(module.terms(student, None, torch.arange(4)))
            ['loss_ce']
        """
        return {"loss_ce": cross_entropy(student.logits[: len(labels)], labels)}

    def loss_weight(self, name: str) -> float:
        """Return the weight of a loss term in the current epoch.

        Args:
            name: name of the term.

        Returns:
            Weight; 1 for a term without one.

        Examples:
            >>> module = BaselineModule("resnet8", num_classes=10, loss_weights={"loss_ce": 2.0})
            >>> module.loss_weight("loss_ce"), module.loss_weight("loss_other")
            (2.0, 1.0)
        """
        return self.loss_weights.get(name, 1.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._prepare()
        self._check_batch(batch, batch_idx)
        images, labels = batch[:2]
        may_be_single = min(len(images), len(labels)) <= 1  # a batch can hold views, and images without labels
        with checked_batch_norms(self) if may_be_single else nullcontext():
            terms = self.losses(batch)
        unknown = self.loss_weights.keys() - terms.keys()
        if unknown:
            raise UsageError(f"loss_weights names {', '.join(sorted(unknown))}; the terms are {', '.join(terms)}")
        loss = total(self.loss_weight(name) * term for name, term in terms.items())
        if loss.device.type == "cpu":  # elsewhere reading it would stall the device: once an epoch is enough
            self._raise_unless_finite(loss, images)
        if self._trainer is not None:
            self.means.add({"loss": loss} | terms, len(images), self.log)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        weight = window_weight(self.trainer)
        super().backward(loss if weight == 1 else weight * loss, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        """Return the optimizer of all parameters that are not frozen, and its learning rate schedule.

        Returns:
            Optimizer and schedule, as Lightning's ``configure_optimizers`` returns them.

        Raises:
            UsageError: if all parameters are frozen.

        Examples:
            >>> module = BaselineModule("resnet8", num_classes=10, lr=0.01)
            >>> module.configure_optimizers()["optimizer"].param_groups[0]["lr"]
            0.01
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            raise UsageError(
                f"{type(self).__name__} has nothing to train, all its parameters are frozen: a network that was given "
                "to another module as its teacher stays frozen, give that module a copy.deepcopy of it"
            )
        self._log_frozen()
        optimizer = self._make_optimizer(parameter_groups(trained, self.networks, self.backbone_lr))
        if self.lr_scheduler is not None and self.backbone_lr is not None:
            epochs = None if self._trainer is None else self.trainer.max_epochs
            check_schedule(self.lr_scheduler, self._make_optimizer, self.backbone_lr, epochs)
        if self.lr_scheduler is not None:
            return one_schedule(optimizer, self.lr_scheduler(optimizer))
        if self.warmup_epochs:
            return with_warmup(optimizer, self.milestones, self.warmup_epochs, self.trainer)
        return one_schedule(optimizer, MultiStepLR(optimizer, self.milestones, gamma=0.1))

    def _log_frozen(self) -> None:
        """Log the parameters that are frozen although they belong to no frozen network of the module."""
        expected = {parameter for frozen in self.frozen for parameter in frozen.network.parameters()}
        others = [
            name
            for name, parameter in self.named_parameters()
            if not parameter.requires_grad and parameter not in expected
        ]
        if others:
            rank_zero_info(f"{len(others)} parameters are frozen and are not trained: {shorten(others)}")

    def _make_optimizer(self, groups: Any) -> Optimizer:
        if self.optimizer is not None:
            return make_optimizer(self.optimizer, groups)
        return SGD(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=self.fast and can_fuse(self),
        )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the callbacks that keep frozen networks, modes and memory, and that of a fast fit unless it is off."""
        return [FrozenGuard(), OwnModes(), ReusedMemory(), *([Fast(self.compile_step)] if self.fast else [])]

    def setup(self, stage: str) -> None:
        self.frozen = [*dict.fromkeys([*self.frozen, *frozen_in(vars(self))])]  # some may have been appended to a list
        self.means.clear()  # those of an interrupted fit
        data = getattr(self.trainer, "datamodule", None)
        data_classes = getattr(data, "num_classes", self.num_classes)
        if self.classifies and data_classes != self.num_classes:
            raise UsageError(
                f"the network has {self.num_classes} classes, {type(data).__name__} has {data_classes}: "
                f"set num_classes={data_classes} or choose the data the network was made for"
            )
        check_channels(self)
        if stage == "fit":
            check_fit(self)
            if not self.uses_unlabelled and getattr(data, "unlabelled", None) is not None:
                raise UsageError(
                    f"unlabelled: {type(self).__name__} needs the label of every image, or uses nothing else: leave "
                    "data.init_args.unlabelled out, or choose a method without labels in its terms, such as KDModule"
                )
        elif self.description is not None:
            check_description(self, self.description, "the network")
        image_size = getattr(data, "image_size", None)
        if image_size is not None:
            for network in self.networks:
                network.check_image_size(image_size, image_size)
            for teacher in self.teachers if stage == "fit" else ():
                teacher.check_side(image_size)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not all_finite(entry for name, entry in checkpoint["state_dict"].items() if name not in self.infinite):
            raise self._divergence()
        checkpoint["transforms"] = self._transform_names()
        checkpoint["networks"] = [network.name for network in self.networks]
        checkpoint["probe"] = self.is_probe
        if self.description is not None:
            checkpoint["data"] = self.description.saved()
        if not self.trainer.is_last_batch:
            checkpoint["means"] = self.means.saved(self.all_gather)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        origin = f"checkpoint {getattr(self._trainer, 'ckpt_path', None) or 'given'}"
        match_weights(self, checkpoint["state_dict"], self.strict_loading, origin)
        transforms = self._transform_names()
        saved_transforms = checkpoint.get("transforms", transforms)
        if saved_transforms != transforms:
            raise UsageError(
                f"{origin} was trained with the transforms {saved_transforms}, not {transforms}: choose those"
            )
        if "weights" in self.weight_files and self.weight_files["weights"].missing:
            del self.weight_files["weights"]  # the checkpoint replaces them
        if "data" in checkpoint:
            self.description = read_description(checkpoint["data"], origin)
            check_description(self, self.description, origin)
        if self._trainer is not None and self.trainer.state.fn != "fit":
            checkpoint.pop("loops", None)  # an evaluation begins with its first batch
        elif self._trainer is not None:
            check_same_rates(checkpoint.get("hyper_parameters", {}), self.hparams)
            self.means.restore(checkpoint.get("means", {}), self.trainer.global_rank, self.trainer.world_size)

    def on_fit_start(self) -> None:
        self._prepare()
        warn_of_slow_averages(self.trainer)
        log_compared_images(self.trainer, self)
        data = data_of(self)
        if data is not None:  # a resumed run has restored it
            description = self.described(data.description)
            if self.description is not None:
                log_changed_images(self.description, description)
            self.description = description
        feed_teachers(self)
        if self.description is not None:
            learned = WeightFile("the data of its last fit", description=self.description.saved())
            for network in self.networks:
                network.remember(learned)

    def on_validation_start(self) -> None:  # before the epoch's checkpoints are written
        if self.trainer.state.fn == "fit":
            self._raise_unless_means_finite()
        else:
            check_weights(self)

    def on_test_start(self) -> None:
        super().on_test_start()
        check_weights(self)

    def on_predict_start(self) -> None:
        check_weights(self)

    def on_train_epoch_end(self) -> None:
        self._raise_unless_means_finite()

    def _raise_unless_means_finite(self) -> None:
        if "loss" in self.means:
            self._raise_unless_finite(self.means["loss"].total)

    def _raise_unless_finite(self, loss: Tensor, images: Tensor | None = None) -> None:
        if loss.isfinite():
            return
        if images is not None and not images.isfinite().all():
            raise UsageError(
                f"The input images contain NaN or inf (epoch {self.current_epoch}); fix the data or the transform."
            )
        raise self._divergence()

    def _divergence(self) -> UsageError:
        return UsageError(
            f"the loss became NaN or infinite in epoch {self.current_epoch}: lower lr, add warmup_epochs or use "
            "trainer.precision 32-true; checkpoints of earlier epochs are intact"
        )
