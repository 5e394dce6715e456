"""The callbacks that take part in training, and the values that tuners found: both belong to the protocol of a run."""

from collections.abc import Iterable, Mapping, Sequence
from pydoc import locate
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    BasePredictionWriter,
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    LearningRateFinder,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)

from hsakd_pl.recipes.recipe import RATES

PACKAGE = __name__.partition(".")[0]
LIGHTNING = pl.__name__
# Callbacks that only watch, save or end a run; all others, known or not, may change what is trained
OBSERVERS = (
    BasePredictionWriter,
    Checkpoint,
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    ThroughputMonitor,
    Timer,
)
TUNERS = (BatchSizeFinder, LearningRateFinder)
NUMBERS = (int, float)
Configured = Sequence[tuple[pl.Callback, str]]  # callbacks of a configuration, with their class paths and options


def takes_part(callback: pl.Callback) -> bool:
    """Return True if a callback may change what is trained; those of this package have options of their own."""
    return _takes_part(type(callback))


def _takes_part(kind: type) -> bool:
    package = kind.__module__.partition(".")[0]
    only_observes = issubclass(kind, OBSERVERS) and package == LIGHTNING  # subclasses of users may do more
    return not only_observes and package != PACKAGE


def takes_part_by_name(text: str) -> bool:
    """Return True if a callback may change what is trained, by its text from :func:`callback_text`."""
    kind = locate(text.partition("(")[0])
    return not isinstance(kind, type) or _takes_part(kind)


def configured_callbacks(instances: Any, options: Any) -> list[tuple[pl.Callback, str]]:
    """Return the callbacks of a configuration, each with a text of its class path and options.

    Args:
        instances: value of ``trainer.callbacks`` after instantiation: a callback, several or None.
        options: the same before instantiation.
    """
    built = instances if isinstance(instances, list) else [instances]
    texts = options if isinstance(options, list) else [options]
    return [
        (callback, callback_text(text))
        for callback, text in zip(built, texts, strict=False)
        if isinstance(callback, pl.Callback)
    ]


def callback_text(options: Any) -> str:
    """Return the text of a callback of a configuration: its class path and options."""
    content = options if isinstance(options, Mapping) else vars(options)
    arguments = content.get("init_args") or {}
    values = arguments if isinstance(arguments, Mapping) else vars(arguments)
    return f"{content['class_path']}({', '.join(f'{name}={value}' for name, value in values.items())})"


def training_callbacks(callbacks: Iterable[pl.Callback], configured: Configured) -> list[str]:
    """Return a text for each callback that takes part in training, in their order.

    Args:
        callbacks: those of the trainer. One that no configuration describes is named by its class.
        configured: return value of :func:`configured_callbacks`.
    """
    texts = [text for callback, text in configured if takes_part(callback)]
    identities = {id(callback) for callback, _ in configured}
    others = [type(callback) for callback in callbacks if takes_part(callback) and id(callback) not in identities]
    return texts + [f"{kind.__module__}.{kind.__qualname__}" for kind in others]


def tuned_values(options: Mapping[str, Any], model: Any, data: Any) -> dict[str, Any]:
    """Return the numbers that a run uses in place of its options, as those that a tuner found, by option.

    Args:
        options: options of a run by dotted name.
        model: its module.
        data: its data module, or None.
    """
    tuned = {}
    for option, value in options.items():
        part, _, name = option.rpartition(".init_args.")
        now = None
        if part == "model" and name not in ("num_classes", "channels"):  # which come from the data
            now = _number_in_use(model, name)
        elif part == "data":
            now = getattr(data, name, None)
        if type(value) in NUMBERS and type(now) in NUMBERS and now != value:
            tuned[option] = now
    return tuned


def _number_in_use(model: Any, name: str) -> Any:
    """Return a hyperparameter; rates that a user's optimizer replaces are attributes alone."""
    if name in model.hparams:
        return model.hparams[name]
    return getattr(model, name, None) if name in RATES else None


def restore_tuned_values(tuned: Mapping[str, Any], model: Any, data: Any) -> None:
    """Set the values that a tuner found before the run was resumed."""
    for option, value in tuned.items():
        part, _, name = option.rpartition(".init_args.")
        holder = model if part == "model" else data
        setattr(holder, name, value)
        if name in getattr(holder, "hparams", {}):
            holder.hparams[name] = value
