"""The callback that trains a student for int8: quantisation-aware training."""

from collections.abc import Iterable, Mapping, Sequence
from types import MethodType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.export.formats import check_onnx
from hsakd_pl.export.quantised import QuantisedNetwork, Range
from hsakd_pl.modules import HSAKDModule
from hsakd_pl.modules.build import RANDOM
from hsakd_pl.modules.provenance import data_of
from hsakd_pl.networks import Network, NetworkOutput
from hsakd_pl.records.formats import QUANTISATION

MOMENTUM = 0.01  # of PyTorch's MovingAverageMinMaxObserver


class QuantizationAware(pl.Callback):
    """Train and validate a finished student as its ``model.int8.onnx`` will compute, for a few epochs.

    Weights and activations of the deployed network are rounded to 8 bits in each pass, exactly where the exported file
    rounds them, and gradients pass through the rounding. The loss, the teacher and the method
    are those of the module. Branches remain in floating point. The network's norms use the statistics of the finished
    run, which do not change; their weights are trained. Dropout in the deployed network is off. The range of each
    activation is a moving average of the smallest and the largest value of a batch. Checkpoints hold the ranges, a
    resumed run continues exactly, and :func:`hsakd_pl.export_student` with ``int8="static"`` writes a file with these
    ranges, without calibration.

    Training is in float32 and needs the extra ``export``. ``val/acc`` is the accuracy of the int8 network, ``test``
    measures the same weights in float32.

    Source: Jacob et al., CVPR 2018.

    Args:
        momentum: part of the way, above 0 and up to 1, by which a step moves the ranges to those of its batch.

    Raises:
        UsageError: for a momentum out of range, for a student without trained weights or in eval mode, for networks
            that cannot be traced or quantised, and for other precisions.

    Examples:
        >>> import pytorch_lightning as pl
        >>> trainer = pl.Trainer(max_epochs=5, callbacks=[QuantizationAware()], logger=False)
        >>> student = StudentModule("resnet8", teacher, weights="runs/student/last.ckpt")  # doctest: +SKIP
        >>> trainer.fit(student, data)  # doctest: +SKIP
    """

    changes_results = True  # and so belongs to the protocol of a run
    needed_precision = "32-true"  # others round in other places than int8

    def __init__(self, momentum: float = MOMENTUM) -> None:
        require(0 < momentum <= 1, "momentum", momentum, "above 0 and at most 1")
        self.momentum = momentum
        self.restored: Sequence[Mapping[str, Range]] | None = None  # ranges of each network in a checkpoint
        self.quantised: list[QuantisedNetwork] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_onnx()
            _check_module(pl_module, str(trainer.precision))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if QUANTISATION not in checkpoint:
            raise UsageError(
                "QuantizationAware cannot resume a run that was not trained with it: start from its weights, by "
                "model.weights, in a new folder"
            )
        self.restored = checkpoint[QUANTISATION]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = pl_module
        assert isinstance(module, HSAKDModule), "the module was checked"
        data = data_of(module)
        if data is None:
            raise UsageError("QuantizationAware needs the size of the images: train on a data module of this package")
        if self.restored is None:
            _check_weights(module)
        networks = [network.without_branches for network in module.networks]
        _check_modes(networks)
        self.quantised = [QuantisedNetwork(network, module.described(data.description)) for network in networks]
        for quantised, ranges in zip(self.quantised, self.restored or [], strict=False):
            quantised.set_ranges(ranges)
        for quantised in self.quantised:
            stand_in(quantised)
        activations = " and ".join(counted(len(quantised.quantisers), "activation") for quantised in self.quantised)
        rank_zero_info(f"QuantizationAware: {activations} and all weights between them are rounded to 8 bits")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        reduce = _smallest if trainer.world_size > 1 else _unchanged
        for quantised in self.quantised:
            quantised.update(self.momentum, reduce)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[QUANTISATION] = [
            {name: [*values] for name, values in quantised.ranges.items()} for quantised in self.quantised
        ]

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def _restore(self) -> None:
        for quantised in self.quantised:
            restore(quantised.network)


class StandIn:
    """Compute a method of a network under fake quantisation; a copy of the network has its own method again."""

    def __init__(self, quantised: QuantisedNetwork, name: str) -> None:
        self.quantised = quantised
        self.name = name

    def __call__(self, images: Tensor) -> Tensor | NetworkOutput:
        outputs = self.quantised(images)
        return outputs if self.name == "outputs" else outputs.logits

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        copied = memo[id(self.quantised.network)]
        return MethodType(getattr(type(copied), self.name), copied)


STOOD_IN = ("forward", "outputs")


def stand_in(quantised: QuantisedNetwork) -> None:
    """Compute the network under fake quantisation wherever it is called."""
    for name in STOOD_IN:
        setattr(quantised.network, name, StandIn(quantised, name))


def restore(network: Network) -> None:
    """Compute a network in floating point again."""
    for name in STOOD_IN:
        vars(network).pop(name, None)


def _unchanged(values: Tensor) -> Tensor:
    return values


def _smallest(values: Tensor) -> Tensor:
    """Return the smallest of each value over all processes."""
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MIN)
    return values


def _check_module(module: pl.LightningModule, precision: str) -> None:
    """Raise UsageError for a module that cannot be trained under fake quantisation."""
    if not isinstance(module, HSAKDModule) or module.is_probe or not module.classifies:
        raise UsageError(
            f"QuantizationAware trains classifiers for int8, and {type(module).__name__} trains none: leave it out"
        )
    needed = QuantizationAware.needed_precision
    if precision != needed:
        raise UsageError(
            f"trainer.precision is {precision}, which rounds in other places than int8: "
            f"QuantizationAware needs {needed}"
        )
    if module.compile_step:
        raise UsageError("compile has no effect on networks that QuantizationAware replaces: leave one of the two out")


def _check_modes(networks: Iterable[Network]) -> None:
    """Raise UsageError for a network in eval mode, in which no range is observed; Lightning keeps modes."""
    if not all(network.training for network in networks):
        raise UsageError(
            "QuantizationAware: the network is in eval mode, in which the ranges of its activations are not observed; "
            "call its train() before fit"
        )


def _check_weights(module: HSAKDModule) -> None:
    """Raise UsageError if a network has been created by name without trained weights."""
    weights = module.hparams.get("weights")
    named = module.hparams.get("network") or module.hparams.get("networks")
    if named and weights in (None, RANDOM):
        raise UsageError(
            "QuantizationAware begins with a trained student: name the checkpoint of its finished run by model.weights"
        )
