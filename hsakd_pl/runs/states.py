"""Check what a checkpoint contains for the parts of a run that are resumed, before they are restored.

The states of this package's callbacks have a declared schema. Those of Lightning's loops and callbacks and of PyTorch's
optimizers and schedules are compared with the states of those that the resumed run has just built.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any

import pytorch_lightning as pl
import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor
from torch.optim import Optimizer

from hsakd_pl.errors import UsageError
from hsakd_pl.files.schema import Anything, Fields, Items, Number, Plain, Schema, Text, Tuple
from hsakd_pl.modules.trainers import callbacks_of
from hsakd_pl.recipes.recipe import RATES
from hsakd_pl.records.formats import CHANGE_FIELDS, COUNT, FRACTION, METRIC, OPTIONAL_TEXT


class Option:
    """The value of an option, as plain data."""

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        if type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(f"{place} is {value!a:.40}")


class Scalar:
    """A tensor of one number, or None."""

    def check(self, value: Any, place: str) -> None:
        """Raise ValueError for anything else."""
        if value is not None and not (isinstance(value, Tensor) and value.numel() == 1):
            raise ValueError(f"{place} is {value!a:.40}")


AMOUNT = Number(0, 1e18)
WHOLE = Number(0, 2**63, whole=True)
STATES: dict[str, Schema] = {  # of this package's callbacks
    "ResultWriter": Fields(
        {
            "spent": Fields(others=AMOUNT),
            "seconds": AMOUNT,  # of early versions, which had no more than the parts of spent
            "images": AMOUNT,
            "metrics": Fields(others=METRIC),
            "val_metrics": Fields(others=METRIC),
            "options": Fields(others=Option()),
            "changes": Items(CHANGE_FIELDS),
            "callbacks": Items(Text(), optional=True),
            "found": Fields(others=AMOUNT),
            "weights": Fields(others=Plain()),
            "commit": OPTIONAL_TEXT,
            "best": Tuple((FRACTION, COUNT)),
            "planned_steps": COUNT,
            "last_val_step": COUNT,
            "ended_epochs": COUNT,
            "ended_steps": WHOLE,
        }
    ),
    "Progress": Fields({"accuracy": FRACTION, "best": FRACTION, "best_epoch": COUNT}),
    "BestCheckpoint": Fields(
        {
            "dirpath": Text(),
            "monitor": OPTIONAL_TEXT,
            "best_model_path": Text(),
            "last_model_path": Text(),
            "kth_best_model_path": Text(),
            "best_model_score": Scalar(),
            "current_score": Scalar(),
            "kth_value": Scalar(),
            "best_k_models": Fields(others=Scalar()),
        },
        required=("dirpath",),
        others=Anything(),
    ),
    "Timer": Fields({"time_elapsed": Fields(others=AMOUNT)}),
    "History": Fields({"val_metrics": Fields(others=METRIC)}, required=("val_metrics",)),
}
# Entries of the states of PyTorch's optimizers that are tensors; others, such as the step, may be numbers
MOMENTS = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "grad_avg", "sum"}
OF_ALL_PARAMETERS = {*MOMENTS, "step"}  # of a group, or of none of them
COUNTS = {"epoch_progress", "epoch_loop.batch_progress", "epoch_loop.automatic_optimization.optim_progress"}
PARTS: dict[str, Schema] = {  # of every checkpoint, where it has them
    "epoch": WHOLE,
    "global_step": WHOLE,
    "transforms": Items(Text()),
    "networks": Items(OPTIONAL_TEXT),
    "slurm_job": OPTIONAL_TEXT,
    "loggers": Fields(others=Plain()),
    "hyper_parameters": Fields(
        {name: Items(AMOUNT) if name == "milestones" else Option() for name in RATES}, others=Anything()
    ),
}


def check_parts(checkpoint: Mapping[str, Any], origin: str) -> None:
    """Raise UsageError for a part of a checkpoint that is not valid."""
    for name, schema in PARTS.items():
        if name in checkpoint:
            _check(schema, _with_lists(checkpoint[name]), name, origin)
    try:
        Version(checkpoint["pytorch-lightning_version"])
    except InvalidVersion as error:
        raise _invalid(f"pytorch-lightning_version: {error}", origin) from error


def check_callback_states(checkpoint: Mapping[str, Any], origin: str) -> None:
    """Raise UsageError for a state of one of this package's callbacks that is not valid.

    Evaluations restore them, too.
    """
    for key, state in checkpoint.get("callbacks", {}).items():
        name = key.partition("{")[0]  # Lightning adds a callback's arguments
        if name in STATES:
            _check(STATES[name], _with_lists(state), f"callbacks.{name}", origin)


def check_schedules(schedules: Iterable[Any]) -> None:
    """Raise UsageError for a schedule whose state cannot be saved: one with a function that Python does not define.

    The state of LambdaLR and MultiplicativeLR contains the attributes of what is called, which functions of C lack.
    """
    for schedule in schedules:
        check_schedules(getattr(schedule, "_schedulers", ()))  # of SequentialLR and ChainedScheduler
        for function in getattr(schedule, "lr_lambdas", ()):
            if not hasattr(function, "__dict__"):
                raise UsageError(
                    f"lr_scheduler: {type(schedule).__name__} cannot be saved with {function.__qualname__}, which is "
                    "not written in Python: call it in a function of your own"
                )


def check_states(trainer: pl.Trainer, checkpoint: Mapping[str, Any], origin: str) -> None:
    """Raise UsageError for a state of a loop or of another callback that is not valid, before a fit resumes from it."""
    if not isinstance(checkpoint["loops"].get("fit_loop"), dict):
        raise _invalid("loops.fit_loop is missing", origin)
    missing = COUNTS - checkpoint["loops"]["fit_loop"].keys()
    if missing:
        raise _invalid(f"loops.fit_loop.{min(missing)} is missing", origin)
    for name, state in trainer.fit_loop.state_dict().items():
        if name in checkpoint["loops"]["fit_loop"]:
            place = f"loops.fit_loop.{name}"
            _compare(checkpoint["loops"]["fit_loop"][name], state, place, origin, complete=True)
    loaders = checkpoint["loops"]["fit_loop"].get("state_dict", {}).get("combined_loader", [])
    if not isinstance(loaders, list):
        raise _invalid("loops.fit_loop.state_dict.combined_loader is not a list", origin)
    for callback in callbacks_of(trainer):
        key = callback.state_key
        name = type(callback).__name__
        if key in checkpoint["callbacks"] and name not in STATES:
            _compare(checkpoint["callbacks"][key], callback.state_dict(), f"callbacks.{name}", origin)
    means = checkpoint.get("means", {})
    if not isinstance(means, dict) or not all(_is_mean(mean) for mean in means.values()):
        raise _invalid("means is not a dictionary of sums and numbers of images", origin)


def check_optimizers(trainer: pl.Trainer, checkpoint: Mapping[str, Any], origin: str) -> None:
    """Raise UsageError for a state of an optimizer or a schedule that does not fit those of the fit."""
    states = checkpoint["optimizer_states"]
    if len(states) != len(trainer.optimizers):
        raise _invalid(f"optimizer_states has {len(states)} states, the run has {len(trainer.optimizers)}", origin)
    for number, (state, optimizer) in enumerate(zip(states, trainer.optimizers, strict=True)):
        place = f"optimizer_states[{number}]"
        replaced = optimizer.state_dict()
        _compare(state, replaced, place, origin)
        is_whole = replaced.keys() <= state.keys()
        if not is_whole or _sizes(state["param_groups"]) != _sizes(replaced["param_groups"]):
            raise _invalid(f"{place} has other groups of parameters", origin)
        _check_groups(optimizer, state["param_groups"], f"{place}.param_groups", origin)
        _check_moments(state["state"], optimizer, f"{place}.state", origin)
    # StochasticWeightAveraging restores its schedule itself
    for number, (state, config) in enumerate(
        zip(checkpoint["lr_schedulers"], trainer.lr_scheduler_configs, strict=False)
    ):
        _check_schedule(state, config.scheduler, f"lr_schedulers[{number}]", origin)


def _sizes(groups: list[Any]) -> list[int]:
    """Return the number of parameters in each group of an optimizer's state, -1 for what is not a group."""
    return [len(group["params"]) if isinstance(group.get("params"), list) else -1 for group in groups]


def _check_groups(optimizer: Optimizer, groups: list[dict[str, Any]], place: str, origin: str) -> None:
    """Raise UsageError for an option of a group that is missing, or that has a value which is not plain data.

    Optimizers complete groups of earlier versions of PyTorch themselves, when they load a state.
    """
    loading = copy(optimizer)
    loading.__setstate__({"state": {}, "param_groups": [dict(group) for group in groups]})
    completed_groups = loading.param_groups
    for number, (group, replaced) in enumerate(zip(completed_groups, optimizer.param_groups, strict=True)):
        for name, value in replaced.items():
            option = f"{place}[{number}].{name}"
            if name not in group:
                raise _invalid(f"{option} is missing", origin)
            if value is None:
                _check(Option(), group[name], option, origin)


def _check_moments(moments: Any, optimizer: Optimizer, place: str, origin: str) -> None:
    """Raise UsageError unless each parameter's state has tensors of its shape or scalars, or None.

    What one parameter of a group has, all others of the group that have a state have as well.
    """
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    groups = [number for number, group in enumerate(optimizer.param_groups) for _ in group["params"]]
    kinds: dict[tuple[int, Any], set[bool]] = {}  # by group and name, whether an entry is None or missing
    for number, values in moments.items():
        is_parameter = isinstance(number, int) and 0 <= number < len(shapes) and isinstance(values, dict)
        if not is_parameter:
            raise _invalid(f"{place}: {number!s:.40} is not the state of a parameter", origin)
        for name, value in (dict.fromkeys(OF_ALL_PARAMETERS) | values).items():
            is_tensor = isinstance(value, Tensor) and value.shape in (shapes[number], torch.Size())
            is_number = type(value) in (int, float, bool) and name not in MOMENTS
            if not is_tensor and not is_number and value is not None:
                raise _invalid(f"{place}[{number}].{name!s:.40} does not fit the parameter", origin)
            kinds.setdefault((groups[number], name), set()).add(value is None)
    mixed = [name for (_, name), kind in kinds.items() if len(kind) > 1]
    if mixed:
        raise _invalid(f"{place}: {mixed[0]!s:.40} is missing for some parameters", origin)


def _check_schedule(state: Any, schedule: Any, place: str, origin: str) -> None:
    """Raise UsageError for a state of a schedule that another one of its kind cannot continue from.

    Earlier versions of PyTorch lack some fields.
    """
    replaced = schedule.state_dict()
    _compare(state, replaced, place, origin)
    if "last_epoch" in replaced.keys() - state.keys():
        raise _invalid(f"{place}.last_epoch is missing", origin)
    for name in replaced.keys() & state.keys() - {"_schedulers"}:
        _check_constant(state[name], replaced[name], f"{place}.{name}", origin)
    schedules = getattr(schedule, "_schedulers", [])  # of SequentialLR and ChainedScheduler
    for number, (inner_state, inner) in enumerate(zip(state.get("_schedulers", []), schedules, strict=False)):
        _check_schedule(inner_state, inner, f"{place}._schedulers[{number}]", origin)


def _check_constant(value: Any, replaced: Any, place: str, origin: str) -> None:
    """Raise UsageError unless what a schedule never changes is the same: lengths of lists, names of fields, text."""
    if isinstance(replaced, str) and value != replaced:
        raise _invalid(f"{place} is {value!a:.40}", origin)
    if isinstance(replaced, dict):
        _compare(value, replaced, place, origin, complete=True)
        for name in replaced:
            _check_constant(value[name], replaced[name], f"{place}.{name}", origin)
    elif isinstance(replaced, list):
        if len(value) != len(replaced):
            raise _invalid(f"{place} has {len(value)} entries, that of the run {len(replaced)}", origin)
        for number, (item, replaced_item) in enumerate(zip(value, replaced, strict=True)):
            _check_constant(item, replaced_item, f"{place}[{number}]", origin)


def _compare(value: Any, replaced: Any, place: str, origin: str, complete: bool = False) -> None:
    """Raise UsageError unless a state has the types, and if ``complete`` the fields, of that which it replaces."""
    if isinstance(replaced, dict):
        if not isinstance(value, dict):
            raise _invalid(f"{place} is a {type(value).__name__}", origin)
        if complete and not replaced.keys() <= value.keys():
            raise _invalid(f"{place} is incomplete", origin)
        for name in replaced.keys() & value.keys():
            _compare(value[name], replaced[name], f"{place}.{name}", origin, complete)
    elif isinstance(replaced, list | tuple):
        if not isinstance(value, list | tuple):
            raise _invalid(f"{place} is a {type(value).__name__}", origin)
        for number, (item, replaced_item) in enumerate(zip(value, replaced, strict=False)):
            _compare(item, replaced_item, f"{place}[{number}]", origin, complete)
    elif replaced is not None and not _is_alike(value, replaced):
        raise _invalid(f"{place} is {value!a:.40}", origin)


def _is_alike(value: Any, replaced: Any) -> bool:
    if isinstance(replaced, bool):
        return isinstance(value, bool)
    if isinstance(replaced, int):
        return type(value) is int and value >= min(0, replaced)
    if isinstance(replaced, float):
        return type(value) in (int, float)
    if isinstance(replaced, Tensor):
        return isinstance(value, Tensor) and value.shape == replaced.shape
    return isinstance(value, type(replaced)) or not isinstance(replaced, str)


def _is_mean(mean: Any) -> bool:
    is_pair = isinstance(mean, list | tuple) and len(mean) == 2
    return is_pair and all(isinstance(part, Tensor) and part.dim() == 1 and len(part) for part in mean)


def _with_lists(state: Any) -> Any:
    """Return a state with lists in place of tuples."""
    if isinstance(state, dict):
        return {key: _with_lists(value) for key, value in state.items()}
    return [_with_lists(value) for value in state] if isinstance(state, list | tuple) else state


def _check(schema: Schema, value: Any, place: str, origin: str) -> None:
    try:
        schema.check(value, place)
    except ValueError as error:
        raise _invalid(str(error), origin) from error


def _invalid(reason: str, origin: str) -> UsageError:
    return UsageError(f"{origin} cannot be used, it is damaged or of another run: {reason}")
