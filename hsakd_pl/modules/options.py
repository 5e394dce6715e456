"""Options that all modules share: declared once, passed on by keyword, shown in full.

:class:`hsakd_pl.HSAKDModule` declares them with their defaults and descriptions. A module takes them as ``**options``
and passes these on::

    class MyModule(StudentModule):
        def __init__(self, network: Net, teacher: Net, my_weight: float = 1.0, **options: Any) -> None:
            super().__init__(network, teacher, **options)
            self.set_loss_weights(loss_my=my_weight)

On the command line, in ``help(MyModule)`` and in its hyperparameters, it has the options of all its bases, except those
that it passes to ``super().__init__`` itself. A module whose ``**options`` are those below alone is annotated with
``Unpack[TrainingOptions]``, so that type checkers and editors know them; one that gives an option another default
declares that option itself, and takes :class:`SharedOptions`.
"""

import inspect
from collections.abc import Sequence
from types import FrameType
from typing import Any, TypedDict

import pytorch_lightning as pl
import torch.nn as nn
from pytorch_lightning.utilities.parsing import collect_init_args

from hsakd_pl.modules.ensembles import Views
from hsakd_pl.modules.optimization import REPLACED, OptimizerMaker, Scheduler
from hsakd_pl.ops import Transforms


class SharedOptions(TypedDict, total=False):
    """Options of every module; :class:`hsakd_pl.HSAKDModule` describes them."""

    momentum: float
    nesterov: bool
    warmup_epochs: int
    optimizer: OptimizerMaker | None
    lr_scheduler: Scheduler | None
    branch_metrics_every: int
    fast: bool
    compile: bool | dict[str, Any]
    loss_weights: dict[str, float] | None


class TrainingOptions(SharedOptions, total=False):
    """Options of the modules that train a whole network."""

    lr: float
    weight_decay: float
    milestones: Sequence[int]
    backbone_lr: float | None


class BranchOptions(TrainingOptions, total=False):
    """Options of the modules whose networks have branches."""

    ensemble: Views | None


def save_options(module: pl.LightningModule) -> None:
    """Save the arguments of the class as hyperparameters; to be called in ``__init__`` of the base of all modules.

    Left out are arguments that are networks, transforms or functions, options that the class sets itself, and SGD's
    options where another optimizer replaces it.
    """
    frame = inspect.currentframe()
    initializer = frame.f_back if frame is not None else None
    assert initializer is not None
    arguments: dict[str, Any] = {}
    for level in collect_init_args(initializer, [], classes=(pl.LightningModule,)):
        arguments |= level
    accepted = {*inspect.signature(type(module)).parameters, *received_names(type(module), initializer)}
    ignored = [name for name, value in arguments.items() if name not in accepted or is_object(value)]
    if arguments.get("optimizer") is not None:
        ignored += REPLACED
    module.save_hyperparameters(ignore=["optimizer", "lr_scheduler", *ignored], frame=initializer)


def received_names(kind: type, frame: FrameType | None) -> set[str]:
    """Return the names of the arguments that the caller gave a class that is being initialised in ``frame``.

    Its signature lacks some of them where its ``__init__`` hands ``**options`` on in a way that cannot be followed.
    """
    initializer: Any = inspect.getattr_static(kind, "__init__")
    while frame is not None and frame.f_code is not getattr(initializer, "__code__", None):
        frame = frame.f_back
    if frame is None:
        return set()
    names, _, keywords, values = inspect.getargvalues(frame)
    return {*names[1:], *(values.get(keywords, {}) if keywords else {})}


def is_object(value: Any) -> bool:
    """Check whether an argument, or the first of several, is an object that cannot be a hyperparameter."""
    if isinstance(value, Transforms | nn.Module):
        return True
    if isinstance(value, list | tuple) and value:
        return isinstance(value[0], nn.Module)
    return False
