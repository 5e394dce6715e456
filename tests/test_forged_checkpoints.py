"""Test that a checkpoint with a field of another type or size is refused in one line when a run is resumed."""

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities.types import LRSchedulerConfig
from small import error_of, run, trainer
from torch.optim import SGD, Adam, Optimizer, RMSprop, lr_scheduler

from hsakd_pl.errors import UsageError
from hsakd_pl.runs.states import check_optimizers


def fit(*options: str, **further: Any) -> None:
    limits = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1, "default_root_dir": "run"}
    run("fit", *options, trainer={**limits, **further})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a checkpoint of the middle of an epoch."""
    stop = {"class_path": "test_interruptions.Signal", "init_args": {"signum": 15, "at": 1}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("run"))
        patch.setattr(sys, "argv", ["main.py"])
        with pytest.raises(SystemExit):
            fit(callbacks=[stop])
        return torch.load("run/last.ckpt", weights_only=True)


def forge(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that replaces a field by its path; callbacks are found by the start of their key."""

    def change(content: Any) -> None:
        *above, last = place.split("/")
        for name in above:
            content = content[_key(content, name)]
        if value is REMOVED:
            del content[_key(content, last)]
        else:
            content[_key(content, last)] = value

    return change


def _key(content: Any, name: str) -> Any:
    if isinstance(content, list):
        return int(name)
    keys = {str(key): key for key in content}
    return keys.get(name) if name in keys else next((key for key in content if str(key).startswith(name)), name)


REMOVED = object()  # in place of a value: the field is removed
PROGRESS = "loops/fit_loop/epoch_progress/current"
FORGERIES: dict[str, Any] = {
    f"{PROGRESS}/processed": "x",
    "loops/fit_loop": {},
    "callbacks/ResultWriter/spent": None,
    "callbacks/ResultWriter/weights": {"sha256": torch.zeros(0)},
    "callbacks/BestCheckpoint/best_model_score": "x",
    "callbacks/History": [],
    "optimizer_states/0/param_groups/0/params": [],
    "optimizer_states/0/param_groups/0/lr": "x",
    "optimizer_states/0/state/0/momentum_buffer": torch.zeros(2, 2),
    "optimizer_states/0/state/1/momentum_buffer": -1,
    "lr_schedulers/0/last_epoch": None,
    "means/loss": 1.5,
    "hyper_parameters": None,
    "pytorch-lightning_version": "x",
    "callbacks/ResultWriter/best": [],
    "transforms": True,
    "epoch": -1,
    "optimizer_states": [],
    "optimizer_states/0/param_groups/0/foreach": torch.zeros(0),
}


IN_CI = [*FORGERIES][1::3]


@pytest.fixture
def forged(saved: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], bytes]:
    """Return a function that writes ``run/last.ckpt`` with a field replaced, and returns the file's content."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])

    def write(place: str, value: Any) -> bytes:
        content = deepcopy(saved)
        forge(place, value)(content)
        Path("run").mkdir()
        torch.save(content, "run/last.ckpt")
        return Path("run/last.ckpt").read_bytes()

    return write


@pytest.mark.parametrize(
    "place", [place if place in IN_CI else pytest.param(place, marks=pytest.mark.nightly) for place in FORGERIES]
)
def test_forged_field_is_refused_on_resume(
    place: str, forged: Callable[[str, Any], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    before = forged(place, FORGERIES[place])
    assert "last.ckpt" in error_of(capsys, lambda: fit("--ckpt_path", "last"))
    assert Path("run/last.ckpt").read_bytes() == before


def check(optimizer: Optimizer, state: dict[str, Any], schedule: Any = None, schedule_state: Any = None) -> None:
    fitted = trainer()
    fitted.strategy.optimizers = [optimizer]
    fitted.strategy.lr_scheduler_configs = [] if schedule is None else [LRSchedulerConfig(schedule)]
    check_optimizers(fitted, {"optimizer_states": [state], "lr_schedulers": [schedule_state]}, "last.ckpt")


OPTIMIZERS = {"SGD": SGD, "Adam": Adam, "RMSprop": RMSprop}


@pytest.mark.parametrize("value", [torch.zeros(2), [], {"x": 1}], ids=str)
@pytest.mark.parametrize("option", ["foreach", "fused"])
def test_forged_option_of_an_optimizer_without_a_value_is_refused(option: str, value: Any) -> None:
    optimizer = Adam([torch.zeros(2, requires_grad=True)])
    state = deepcopy(optimizer.state_dict())
    check(optimizer, state)
    state["param_groups"][0][option] = value
    with pytest.raises(UsageError, match=rf"last.ckpt cannot be used.*param_groups\[0\]\.{option}"):
        check(optimizer, state)


@pytest.mark.parametrize(
    ("kind", "option"),
    [("SGD", "momentum"), ("SGD", "lr"), ("SGD", "dampening"), ("Adam", "betas"), ("RMSprop", "alpha")],
)
def test_missing_option_of_an_optimizer_is_refused(kind: str, option: str) -> None:
    optimizer = OPTIMIZERS[kind]([torch.zeros(2, requires_grad=True)], lr=0.1)
    state = deepcopy(optimizer.state_dict())
    del state["param_groups"][0][option]
    with pytest.raises(UsageError, match=rf"last.ckpt cannot be used.*param_groups\[0\]\.{option} is missing"):
        check(optimizer, state)


@pytest.mark.parametrize(
    ("kind", "option"), [("SGD", "fused"), ("SGD", "maximize"), ("Adam", "foreach"), ("RMSprop", "capturable")]
)
def test_option_that_earlier_optimizers_lacked_may_be_missing(kind: str, option: str) -> None:
    optimizer = OPTIMIZERS[kind]([torch.zeros(2, requires_grad=True)], lr=0.1)
    state = deepcopy(optimizer.state_dict())
    del state["param_groups"][0][option]
    check(optimizer, state)
    assert option not in state["param_groups"][0] and option in optimizer.param_groups[0]


def stepped(*momenta: float, adaptive: bool = False) -> Optimizer:
    """Return an optimizer of two parameters per group after a step."""
    groups: list[dict[str, Any]] = [
        {"params": [torch.ones(2, requires_grad=True) for _ in range(2)], "momentum": momentum} for momentum in momenta
    ]
    optimizer: Optimizer = SGD(groups, lr=0.1)
    if adaptive:
        optimizer = Adam([{"params": group["params"]} for group in groups])
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones(2)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("adaptive", "place", "value"),
    [
        (False, "state/0/momentum_buffer", REMOVED),
        (False, "state/1/momentum_buffer", None),
        (True, "state/1/exp_avg", REMOVED),
        (True, "state/0/exp_avg_sq", None),
        (True, "state/1/step", REMOVED),
        (False, "param_groups", REMOVED),
        (False, "state", REMOVED),
    ],
)
def test_incomplete_state_of_an_optimizer_is_refused(adaptive: bool, place: str, value: Any) -> None:
    optimizer = stepped(0.9, adaptive=adaptive)
    state = deepcopy(optimizer.state_dict())
    forge(place, value)(state)
    with pytest.raises(UsageError, match=r"last.ckpt cannot be used.*optimizer_states\[0\]"):
        check(optimizer, state)


def test_groups_and_parameters_without_momentum_are_accepted() -> None:
    optimizer = stepped(0.9, 0.0)
    state = deepcopy(optimizer.state_dict())
    check(optimizer, state)
    del state["state"][1]  # of a parameter without a gradient so far
    check(optimizer, state)


def sequence(optimizer: Optimizer) -> lr_scheduler.LRScheduler:
    parts = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])


SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=4),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[1, 2]),
    "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
    "SequentialLR": sequence,
}
FORGED_SCHEDULES: list[tuple[str, str, Any]] = [
    ("OneCycleLR", "_schedule_phases/0/end_step", REMOVED),
    ("OneCycleLR", "_schedule_phases/0/start_lr", "x"),
    ("OneCycleLR", "_anneal_func_type", "x"),
    ("OneCycleLR", "_schedule_phases", []),
    ("CosineAnnealingLR", "base_lrs", []),
    ("CosineAnnealingLR", "last_epoch", REMOVED),
    ("MultiStepLR", "milestones/1", REMOVED),
    ("ReduceLROnPlateau", "mode", "maximum"),
    ("ReduceLROnPlateau", "min_lrs", [0.0, 0.0]),
    ("SequentialLR", "_schedulers/1/base_lrs", []),
    ("SequentialLR", "_schedulers/1/last_epoch", REMOVED),
]


def saved_schedule(kind: str) -> tuple[Optimizer, Any, dict[str, Any]]:
    """Return an optimizer and a schedule, and the state of the schedule after three steps."""
    optimizer = SGD([torch.zeros(2, requires_grad=True)], lr=0.1, momentum=0.9)
    stepped = SCHEDULES[kind](SGD([torch.zeros(2, requires_grad=True)], lr=0.1, momentum=0.9))
    for _ in range(3):
        stepped.optimizer.step()
        stepped.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
    return optimizer, SCHEDULES[kind](optimizer), deepcopy(stepped.state_dict())


@pytest.mark.parametrize(("kind", "place", "value"), FORGED_SCHEDULES)
def test_forged_state_of_a_schedule_is_refused(kind: str, place: str, value: Any) -> None:
    optimizer, schedule, state = saved_schedule(kind)
    forge(place, value)(state)
    with pytest.raises(UsageError, match=r"last.ckpt cannot be used.*lr_schedulers\[0\]"):
        check(optimizer, optimizer.state_dict(), schedule, state)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_state_of_a_schedule_of_an_earlier_version_is_accepted(kind: str) -> None:
    optimizer, schedule, state = saved_schedule(kind)
    for part in (state, *state.get("_schedulers", [])):
        part.pop("_is_initial", None)
        part.pop("_get_lr_called_within_step", None)
    check(optimizer, optimizer.state_dict(), schedule, state)


def evaluate() -> None:
    run("test", "--ckpt_path", "last", trainer={"limit_test_batches": 1, "default_root_dir": "run"})


@pytest.mark.parametrize("place", ["loops/test_loop/batch_progress/total", "loops/test_loop", "loops"])
def test_evaluation_ignores_progress(place: str, forged: Callable[[str, Any], bytes]) -> None:
    forged(place, {"x": {}})
    evaluate()
    assert Path("run/test.json").is_file()


@pytest.mark.parametrize(
    "place",
    ["callbacks/ResultWriter/spent/resumes", "callbacks/History/val_metrics", "callbacks/BestCheckpoint/dirpath"],
)
def test_evaluation_refuses_forged_state_of_callback(
    place: str, forged: Callable[[str, Any], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    forged(place, [])
    assert "last.ckpt" in error_of(capsys, evaluate)
