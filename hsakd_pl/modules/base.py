"""What all modules share: optimizer, schedule, logging, evaluation. A method overrides ``losses`` and little else."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn as nn
from torch import Tensor
from torch.optim.lr_scheduler import MultiStepLR

from hsakd_pl.errors import UsageError
from hsakd_pl.modules.compiled import Compiled
from hsakd_pl.modules.heap import keep_freed_memory
from hsakd_pl.modules.metrics import Evaluation, Mean
from hsakd_pl.modules.optimization import Scheduler, make_sgd, one_schedule, with_warmup
from hsakd_pl.networks import NetworkOutput, StagedBackbone
from hsakd_pl.ops import NUM_ROTATIONS, rotate, total
from hsakd_pl.weights import fit
from hsakd_pl.winograd import set_winograd

Batch = tuple[Tensor, Tensor]


def as_output(output: NetworkOutput | Tensor) -> NetworkOutput:
    """Bring the logits of a network without branches to the form of one with branches."""
    return NetworkOutput(output, ()) if isinstance(output, Tensor) else output


def class_part(network: nn.Module) -> nn.Module:
    """The network without its branches, for where only class logits are asked for."""
    return getattr(network, "backbone", network)


class HSAKDModule(pl.LightningModule):
    """Trains and evaluates one or more networks of the same classes with SGD.

    A subclass implements :meth:`losses` and gives the weight of each of its terms. The defaults are the paper's recipe
    for CIFAR-100 (Sec. 4.1); ``milestones`` are the epochs, counted after the warm-up, where ``lr`` falls to a tenth.

    ``lr_scheduler`` makes another schedule from the optimizer and takes the place of warm-up and milestones: a class
    path with its arguments in a configuration, a ``functools.partial`` in Python. It steps once an epoch, one that
    watches a metric on ``val/loss`` unless it names another. Checkpoints hold its state but not the function itself:
    give it again to ``load_from_checkpoint`` to go on training.

    ``branch_metrics_every``: joint and class accuracies of the branches, over all rotations, are measured in every n-th
    epoch's validation and in every test, at several times the cost of the class head's; 0 switches them off.
    ``compile``: ``fit`` compiles the training step and the validation of the class head, with CUDA graphs on one GPU.
    ``compile_options``: settings of PyTorch's code generator (``torch._inductor.config``) on top of that.
    """

    compiled: dict[str, Compiled]
    frozen: tuple[nn.Module, ...] = ()  # parts kept in eval mode; a tuple, so that they are not registered once more

    def __init__(
        self,
        networks: Sequence[nn.Module],
        loss_weights: dict[str, float],
        num_classes: int = 100,
        image_size: int | None = None,
        lr: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        milestones: Sequence[int] = (150, 180, 210),
        warmup_epochs: int = 0,
        lr_scheduler: Scheduler | None = None,
        branch_metrics_every: int = 10,
        compile: bool = False,
        compile_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if lr_scheduler is not None and warmup_epochs:
            raise UsageError(f"warmup_epochs is {warmup_epochs}: lr_scheduler replaces the warm-up, set one of the two")
        if compile_options and not compile:
            raise UsageError("compile_options has no effect without compile: set that to true, or leave both out")
        self.networks = nn.ModuleList(networks)
        self.loss_weights = loss_weights
        self.num_classes = getattr(networks[0], "num_classes", num_classes)
        self.lr, self.momentum, self.nesterov, self.weight_decay = lr, momentum, nesterov, weight_decay
        self.milestones, self.warmup_epochs, self.lr_scheduler = tuple(milestones), warmup_epochs, lr_scheduler
        self.branch_metrics_every = branch_metrics_every
        self.compiles, self.compile_options, self.compiled = compile, compile_options or {}, {}
        self.means: dict[str, Mean] = {}  # of a fit's current epoch
        for network in networks:
            if image_size is not None and isinstance(backbone := class_part(network), StagedBackbone):
                backbone.check_image_size(image_size, image_size)
        self.evaluation = Evaluation(self.num_classes, [len(getattr(network, "branches", ())) for network in networks])

    @property
    def network(self) -> nn.Module:
        """The network that is trained (the first peer where there are several)."""
        return self.networks[0]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The method: its named loss terms, unweighted scalars, for images (B, 3, S, S) and labels (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must implement losses")

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._pin_frozen()
        terms = self.compiled["step"](*batch) if self.compiled else self.losses(batch)
        loss = total(self.loss_weights[name] * term for name, term in terms.items())
        if loss.device.type == "cpu":  # elsewhere reading it would stall the device: once an epoch is enough
            self._raise_unless_finite(loss)
        if self.means:
            self._add_to_means({"loss": loss, **terms}, len(batch[1]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        every, epoch = self.branch_metrics_every, self.current_epoch + 1
        due = self.trainer.state.fn != "fit" or epoch == self.trainer.max_epochs or (every > 0 and epoch % every == 0)
        self._evaluate(batch, "val", every > 0 and due)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.branch_metrics_every > 0)

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> dict[str, Any]:
        """Class, its probability, and in how many of the four rotations the same class wins (as a fraction)."""
        images, sources = batch
        logits = as_output(class_part(self.network)(rotate(images))).logits.unflatten(0, (NUM_ROTATIONS, -1))
        probability, predicted = logits[0].softmax(1).max(1)
        agreement = logits.argmax(2).eq(predicted).float().mean(0)
        return {"source": sources, "class": predicted, "probability": probability, "rotation_agreement": agreement}

    def _add_to_means(self, values: dict[str, Tensor], images: int) -> None:
        """What Lightning asks for at the end of an epoch; it took 1.5 ms to log the values themselves at each step."""
        for name, value in values.items():
            if not self.means[name].update_called:
                self.log(f"train/{name}", self.means[name], on_step=False, on_epoch=True, metric_attribute=name)
            self.means[name].update(value, images)

    def _evaluate(self, batch: Batch, split: str, with_branches: bool) -> None:
        self._pin_frozen()
        images, labels = batch
        for peer, network in enumerate(self.networks):
            rotated = with_branches and bool(self.evaluation.branches[peer])
            classify = self.compiled.get(f"peer{peer}", class_part(network))
            output = as_output(network(rotate(images)) if rotated else classify(images))
            for name, metric in self.evaluation.add(peer, output, labels).items():
                self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "acc")

    def configure_optimizers(self) -> Any:
        """SGD on what is not frozen, whose rate changes as ``lr_scheduler``, or warm-up and milestones, say."""
        options = {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": self.nesterov}
        optimizer = make_sgd(self, self.lr, **options)
        if self.lr_scheduler is not None:
            return one_schedule(optimizer, self.lr_scheduler(optimizer))
        if self.warmup_epochs:
            return with_warmup(optimizer, self.milestones, self.warmup_epochs, self.trainer)
        return one_schedule(optimizer, MultiStepLR(optimizer, self.milestones, gamma=0.1))

    def setup(self, stage: str) -> None:
        self.to(memory_format=torch.channels_last)  # 1.2 times as fast on a CPU
        data = getattr(self.trainer, "datamodule", None)
        if (found := getattr(data, "num_classes", self.num_classes)) != self.num_classes:
            raise UsageError(
                f"the network has {self.num_classes} classes, {type(data).__name__} has {found}: "
                f"set num_classes={found} or choose the data the network was made for"
            )

    def train(self, mode: bool = True) -> "HSAKDModule":
        super().train(mode)
        self._pin_frozen()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path = getattr(self._trainer, "ckpt_path", None)
        fit(self, checkpoint["state_dict"], self.strict_loading, origin=f"checkpoint {path or 'given'}")

    def on_fit_start(self) -> None:
        self.means = {name: Mean().to(self.device) for name in ("loss", *self.loss_weights)}
        keep_freed_memory(self.device, True)
        set_winograd(self.networks, on=True)
        if self.compiles:
            # not with several devices, whose norms' buffers are synchronised, nor where gradients must outlast a step
            alone = self.trainer.world_size == self.trainer.accumulate_grad_batches == 1
            graphs = alone and self.device.type == "cuda"
            how = graphs, self.compile_options
            self.compiled = {"step": Compiled(lambda *batch: self.losses(batch), "training step", *how)}
            for peer, network in enumerate(self.networks):
                self.compiled[f"peer{peer}"] = Compiled(class_part(network), "validation", *how)

    def on_fit_end(self) -> None:
        self.compiled, self.means = {}, {}
        keep_freed_memory(self.device, False)
        set_winograd(self.networks, on=False)

    def on_validation_start(self) -> None:  # before the epoch's checkpoints are written
        if self.trainer.state.fn == "fit":
            self._raise_unless_finite(self.means["loss"].total)

    def on_train_epoch_end(self) -> None:
        self._raise_unless_finite(self.means["loss"].total)

    def _pin_frozen(self) -> None:
        for part in self.frozen:
            if any(layer.training for layer in part.modules()):  # a quarter of the time of eval(), every step
                part.eval()

    def _raise_unless_finite(self, loss: Tensor) -> None:
        if not loss.isfinite():
            raise UsageError(
                f"the loss became NaN or infinite in epoch {self.current_epoch}: lower lr, add warmup_epochs or use "
                "trainer.precision 32-true; checkpoints of earlier epochs are intact"
            )
