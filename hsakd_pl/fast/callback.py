"""The callback that makes a module faster in fits and evaluations."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from hsakd_pl.fast import norms, strided, winograd
from hsakd_pl.fast.compiled import Compiled
from hsakd_pl.fast.folded import Folded
from hsakd_pl.fast.layout import networks_kept_contiguous, store_channels_last
from hsakd_pl.fast.norms.layers import has_hooks
from hsakd_pl.fast.proofs import Observed
from hsakd_pl.networks import Classifier, Network, NetworkOutput

HALF_PRECISION = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Teacher(Protocol):
    """A frozen network in whose place ``stand_in``, if set, computes the outputs."""

    network: nn.Module
    stand_in: Callable[[Tensor], NetworkOutput] | None


class TrainedNetworks(Protocol):
    """The part of :class:`hsakd_pl.HSAKDModule` that runs make faster."""

    networks: nn.ModuleList
    teachers: Sequence[Teacher]
    evaluators: Sequence[Folded]


class Fast(pl.Callback):
    """Convert a module when a run starts, and revert it when the run ends, also after an exception.

    Every module adds this callback unless ``fast=False``. Weights are stored channels_last, except in networks that do
    not answer alike in that layout, which the kernels below leave alone too; in a fit, teachers are replaced by a
    folded copy, gradients are freed before the next step, strided 1x1 convolutions of few channels get only the pixels
    that they read, and ``compile`` compiles the training step and the validation of the class head. On a CPU, 3x3
    convolutions use Winograd's algorithm, a norm is one operation with the ReLU after it, and evaluations in float32
    run on folded copies of the package's networks. With ``trainer.deterministic``, implementations whose order of
    summation depends on the number of threads are not used.

    Args:
        compile: compile; a dictionary holds settings of PyTorch's code generator.
    """

    def __init__(self, compile: bool | dict[str, Any] = False) -> None:
        self.compile = compile
        self.undo = ExitStack()
        self.end_evaluation = ExitStack()
        self.contiguous: Sequence[Network] = ()  # networks whose weights are not stored channels_last

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        trained = cast(TrainedNetworks, module)
        teachers = [teacher.network for teacher in trained.teachers if isinstance(teacher.network, Network)]
        networks = [*cast(list[Network], trained.networks), *teachers]
        image_size = getattr(getattr(trainer, "datamodule", None), "image_size", None)
        self.contiguous = networks_kept_contiguous(networks, image_size)
        store_channels_last(module, self.contiguous)  # 1.2 times as fast on a CPU
        self.undo.callback(module.to, memory_format=torch.contiguous_format)

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trained = cast(TrainedNetworks, module)
        deterministic = torch.are_deterministic_algorithms_enabled()
        dtype = HALF_PRECISION.get(str(trainer.precision))
        for teacher in trained.teachers:
            if not isinstance(teacher.network, Network):  # another module, which returns anything
                continue
            if Observed(teacher.network).has_hooks:  # which are called with whole batches, and by these layers
                continue
            kernels = not deterministic and teacher.network not in self.contiguous
            folded = Folded(teacher.network, dtype, parts=kernels, park=True)
            teacher.stand_in = self.undo.enter_context(folded)
            self.undo.callback(setattr, teacher, "stand_in", None)
        self._use(strided, module)
        if not deterministic:
            parts = [part for part in module.children() if part is not trained.networks]  # that a method trains too
            for network in [*trained.networks, *parts]:
                if network not in self.contiguous:
                    self._use(winograd, network)
                    self._use(norms, network)
        if self.compile:
            self._compile(trainer, module)

    def _use(self, layers: ModuleType, network: nn.Module) -> None:
        layers.convert(network)
        self.undo.callback(layers.revert, network)

    def _compile(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # not with several devices, whose norms' buffers are synchronised, nor where gradients must outlast a step
        single = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
        options: dict[str, Any] = {"triton.cudagraphs": single and module.device.type == "cuda"}
        if isinstance(self.compile, dict):
            options |= self.compile
        for method in ("losses", "classify"):  # shadowed on the instance
            setattr(module, method, Compiled(getattr(module, method), options))
            self.undo.callback(delattr, module, method)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Free the gradients of the step before, which Lightning would keep until the backward pass of this one."""
        starts_window = batch_idx % trainer.accumulate_grad_batches == 0
        if not starts_window or not module.automatic_optimization or _reads_gradients_later(trainer, module):
            return
        for optimizer in trainer.optimizers:
            module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Fold before the first batch: by then, callbacks that average weights have put the averages in place."""
        evaluated = cast(TrainedNetworks, pl_module)
        compiled = self.compile and trainer.state.fn == "fit"
        if evaluated.evaluators or compiled or trainer.sanity_checking or self.contiguous:
            return
        if not _can_evaluate_folded(trainer, pl_module):
            return
        folded = [Folded(network) for network in cast(list[Network], evaluated.networks)]
        evaluated.evaluators = [self.end_evaluation.enter_context(network) for network in folded]
        self.end_evaluation.callback(setattr, evaluated, "evaluators", ())

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end_evaluation.close()

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.end_evaluation.close()
        self.undo.close()

    def teardown(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.end_evaluation.close()
        self.undo.close()


def _reads_gradients_later(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Return True if the module or a callback is called before the gradients of the step before are freed."""
    callbacks = cast(Any, trainer).callbacks  # which Lightning does not declare
    if is_overridden("on_before_zero_grad", module):
        return True
    return any(is_overridden("on_before_zero_grad", callback, pl.Callback) for callback in callbacks)


def _can_evaluate_folded(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Return True for a module in float32 on a CPU all of whose networks a folded copy may replace."""
    if module.device.type != "cpu" or module.dtype != torch.float32 or trainer.precision != "32-true":
        return False
    if torch.are_deterministic_algorithms_enabled():
        return False
    return all(_is_foldable(network) for network in cast(list[Network], cast(TrainedNetworks, module).networks))


def _is_foldable(network: Network) -> bool:
    """Return True for a network of the package in whose layers nothing depends on the batch, or observes it."""
    part = network.without_branches
    if "forward" in vars(part):  # replaced on the instance, as by QuantizationAware
        return False
    if isinstance(part, Classifier) or not type(part).__module__.startswith("hsakd_pl.networks."):
        return False
    return not any(
        layer.training
        or has_hooks(layer)
        or is_parametrized(layer)
        or (isinstance(layer, _BatchNorm) and layer.running_mean is None)
        for layer in network.modules()
    )
