"""Test that Lightning's callbacks and tuners work with all modules, fast or not."""

import math
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn as nn
from methods import make_method
from pytorch_lightning import callbacks
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.tuner import Tuner
from small import MODULES, error_of, loader, make, trainer
from small import run as command
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, CosineAnnealingLR, LambdaLR, SequentialLR, StepLR

from hsakd_pl import DigitsDataModule, HSAKDModule
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import CRDModule
from hsakd_pl.runs.callbacks import check_callbacks
from hsakd_pl.runs.states import check_schedules


class Finetuning(callbacks.BaseFinetuning):
    """Unfreeze the first stage in epoch 1."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.networks[0].without_branches.stages[0])

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            stage = pl_module.networks[0].without_branches.stages[0]
            self.unfreeze_and_add_param_group(stage, optimizer, lr=0.1)


Check = Callable[[pl.Trainer, HSAKDModule, Any], Any]
CALLBACKS: dict[str, tuple[Callable[[Path], pl.Callback], Check]] = {
    "rate finder": (lambda folder: callbacks.LearningRateFinder(num_training_steps=30), lambda run, m, c: m.lr != 0.01),
    "batch size finder": (
        lambda folder: callbacks.BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=2),
        lambda run, m, c: run.datamodule.batch_size >= 8,
    ),
    "weight averaging": (
        lambda folder: callbacks.EMAWeightAveraging(decay=0.5),
        lambda run, m, c: run.global_step == 6,
    ),
    "stochastic weight averaging": (
        lambda folder: callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1),
        lambda run, m, c: int(c.n_averaged) > 0,
    ),
    "early stopping": (
        lambda folder: callbacks.EarlyStopping("val/loss", patience=0, min_delta=100.0),
        lambda run, m, c: c.stopped_epoch == 1,
    ),
    "accumulation": (
        lambda folder: callbacks.GradientAccumulationScheduler({0: 1, 1: 2}),
        lambda run, m, c: run.global_step == 2 + 2 * 1,
    ),
    "own checkpoint": (
        lambda folder: callbacks.ModelCheckpoint(folder, "{epoch}", monitor="val/acc", mode="max", save_top_k=-1),
        lambda run, m, c: len(list(Path(c.dirpath).glob("epoch=*.ckpt"))) == 3,
    ),
    "checkpoint on an exception": (lambda folder: callbacks.OnExceptionCheckpoint(folder), lambda run, m, c: True),
    "throughput": (
        lambda folder: callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]), window_size=2),
        lambda run, m, c: run.global_step == 6,
    ),
    "device": (lambda folder: callbacks.DeviceStatsMonitor(cpu_stats=True), lambda run, m, c: run.global_step == 6),
    "rate monitor": (
        lambda folder: callbacks.LearningRateMonitor(),
        lambda run, m, c: len(c.lrs) == 1,
    ),
    "tqdm": (lambda folder: callbacks.TQDMProgressBar(), lambda run, m, c: run.global_step == 6),
    "rich": (lambda folder: callbacks.RichProgressBar(), lambda run, m, c: run.global_step == 6),
    "summary": (lambda folder: callbacks.RichModelSummary(max_depth=2), lambda run, m, c: run.global_step == 6),
    "timer": (lambda folder: callbacks.Timer("00:01:00:00"), lambda run, m, c: c.time_elapsed("train") > 0),
    "finetuning": (
        lambda folder: Finetuning(),
        lambda run, m, c: [len(group["params"]) > 0 for group in run.optimizers[0].param_groups] == [True, True],
    ),
    "pruning": (
        lambda folder: callbacks.ModelPruning("l1_unstructured", amount=0.5, make_pruning_permanent=True),
        lambda run, m, c: float(torch.cat([p.flatten() for p in m.networks.parameters()]).eq(0).float().mean()) > 0.3,
    ),
}
if not hasattr(callbacks, "EMAWeightAveraging"):  # Lightning 2.6 brought it
    del CALLBACKS["weight averaging"]


# torch's pruning takes weights as contiguous vectors, which channels_last ones are not
CASES = [(name, fast) for name in CALLBACKS for fast in (True, False) if name != "pruning" or not fast]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "fast"), CASES)
def test_lightning_callbacks_work_with_modules(
    name: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # finders write a file to the working folder
    make_callback, done = CALLBACKS[name]
    callback, module = make_callback(tmp_path), make("student", num_classes=10, lr=0.01, fast=fast)
    run = pl.Trainer(
        accelerator="cpu",
        max_epochs=1 if name == "rate finder" else 3,
        limit_train_batches=30 if name == "rate finder" else 2,
        limit_val_batches=1,
        log_every_n_steps=1,
        logger=CSVLogger(tmp_path),
        enable_checkpointing="checkpoint" in name,
        enable_progress_bar=name in ("tqdm", "rich"),
        callbacks=[callback],
    )
    run.fit(module, datamodule=DigitsDataModule(batch_size=8))
    assert done(run, module, callback)
    assert math.isfinite(run.callback_metrics["train/loss"])
    assert module.teacher.stand_in is None


@pytest.mark.parametrize(
    "kind", ["student", *(pytest.param(kind, marks=pytest.mark.nightly) for kind in MODULES if kind != "student")]
)
def test_tuner_runs_before_fit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, module, data = trainer(limit_val_batches=1), make(kind, num_classes=10), DigitsDataModule(batch_size=16)
    finder = Tuner(run).lr_find(module, datamodule=data, num_training=6)
    assert len(finder.results["lr"]) == 6
    assert Tuner(run).scale_batch_size(module, datamodule=data, init_val=4, max_trials=2, steps_per_trial=1) >= 8
    run.fit(module, datamodule=data)
    assert "train/loss" in run.callback_metrics


def test_custom_network_may_name_a_part_backbone(tmp_path: Path) -> None:
    """Check that a part that happens to be called ``backbone`` is not taken for the whole network."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
            self.branches, self.transforms, self.num_classes = 3, "none", "ten"

        def forward(self, images: Any) -> Any:
            return 10 * torch.eye(4)[images[:, 0, 0, 0].long()] + 0 * self.backbone(images)

    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(4)), batch_size=2)
    for module in (make("baseline", network=Own()), make("student", teacher=Own(), network=Own(), joint_kd_weight=0)):
        (tested,) = trainer().test(module, batches, verbose=False)
        assert tested["test/acc"] == 1
        trainer().fit(module, batches, batches)


AVERAGING = [name for name in ("EMAWeightAveraging", "WeightAveraging") if hasattr(callbacks, name)]


@pytest.mark.parametrize("name", AVERAGING)
def test_banks_take_no_part_in_weight_averaging(name: str, tmp_path: Path) -> None:
    def train(*used: pl.Callback) -> dict[str, torch.Tensor]:
        data = DigitsDataModule(batch_size=8, num_workers=0, train_fraction=0.05)
        options = {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1, "callbacks": [*used]}
        module = make_method("crd")
        assert isinstance(module, CRDModule)
        trainer(tmp_path, **options).fit(module, datamodule=data)
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        again = CRDModule.load_from_checkpoint(tmp_path / "last.ckpt")
        assert again.samples == module.samples == len(data.splits["train"].targets)
        return {key: tensor for key, tensor in saved["state_dict"].items() if "memory" in key or "normalizers" in key}

    alone = train()
    averaged = train(getattr(callbacks, name)())
    assert len(alone) == 3
    torch.testing.assert_close(averaged, alone, rtol=0, atol=0)


class Copying(pl.Callback):
    """Keep a copy of the module from a hook of the fit."""

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.copy: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        setattr(self, self.hook, self._keep)

    def _keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.copy = deepcopy(pl_module)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_batch_end", "on_validation_epoch_end"])
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_copy_made_inside_a_fit_is_a_working_module(kind: str, hook: str) -> None:
    copying = Copying(hook)
    trainer(callbacks=[copying]).fit(make(kind), loader(), loader())
    trainer().validate(copying.copy, loader(), verbose=False)
    trainer().fit(copying.copy, loader(), loader())
    trainer().test(copying.copy, loader(), verbose=False)


SLIPS: dict[str, Any] = {
    "EarlyStopping monitors val_loss, which is not logged: did you mean val/loss": ("EarlyStopping", "val_loss"),
    "ModelCheckpoint monitors val_acc, which is not logged: did you mean val/acc": ("ModelCheckpoint", "val_acc"),
    "EarlyStopping monitors train_loss, which is not logged": ("EarlyStopping", "train_loss"),
    "BackboneFinetuning needs a module with a part named backbone": ("BackboneFinetuning", {}),
    "GradientAccumulationScheduler replaces trainer.accumulate_grad_batches": (
        "GradientAccumulationScheduler",
        {"scheduling": {0: 2}},
    ),
    "DeviceStatsMonitor needs a logger": ("DeviceStatsMonitor", {}),
    "ModelPruning needs weights in PyTorch's own order": ("ModelPruning", {"pruning_fn": "l1_unstructured"}),
    "StochasticWeightAveraging needs a number of epochs": ("StochasticWeightAveraging", {"swa_lrs": 0.1}),
    "trainer: The `swa_lrs` should": ("StochasticWeightAveraging", {"swa_lrs": -0.1}),
    "trainer.val_check_interval is 3, but an epoch has 2 batches": ("LambdaCallback", {}),
}
SLIPS_IN_CI = [*SLIPS][:6]


@pytest.mark.parametrize(
    "message", [name if name in SLIPS_IN_CI else pytest.param(name, marks=pytest.mark.nightly) for name in SLIPS]
)
def test_callback_that_does_not_fit_is_one_line(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    name, options = SLIPS[message]
    init_args = {"monitor": options} if isinstance(options, str) else options
    callback = {"class_path": f"pytorch_lightning.callbacks.{name}", "init_args": init_args}
    further: dict[str, Any] = {
        "GradientAccumulationScheduler": {"accumulate_grad_batches": 2},
        "StochasticWeightAveraging": {"max_epochs": -1, "max_steps": 1},
        "LambdaCallback": {"val_check_interval": 3},
    }.get(name, {})
    sanity = {"num_sanity_val_steps": 1, "limit_val_batches": 1}
    assert message in error_of(capsys, lambda: command("fit", trainer={**sanity, **further, "callbacks": [callback]}))
    trained = options == "train_loss"  # the names of training metrics are known after an epoch
    assert Path("runs/BaselineModule/metrics.csv").exists() == trained


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone_lr": 0.001}, "sets one rate for all parameters"),
        ({"warmup_epochs": 1}, "starts the warm-up with the rate that it should end with"),
        ({"lr_scheduler": partial(LambdaLR, lr_lambda=lambda epoch: 1.0)}, "leaves LambdaLR at the learning rate"),
        ({"lr_scheduler": partial(CosineAnnealingLR, T_max=2)}, "leaves CosineAnnealingLR at the learning rate"),
    ],
)
def test_search_of_a_learning_rate_that_a_schedule_forgets_raises(options: dict[str, Any], said: str) -> None:
    search = callbacks.LearningRateFinder()
    with pytest.raises(UsageError, match=f"LearningRateFinder {said}"):
        check_callbacks(trainer(callbacks=[search]), make("teacher", **options))


def test_search_of_a_learning_rate_is_accepted_with_relative_schedules() -> None:
    run = trainer(callbacks=[callbacks.LearningRateFinder()])
    check_callbacks(run, make("teacher", milestones=[1]))
    check_callbacks(run, make("teacher", lr_scheduler=partial(StepLR, step_size=2)))


def of_lightning(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"pytorch_lightning.{name}", "init_args": options}


UNFIT: dict[str, dict[str, Any]] = {
    "GradientAccumulationScheduler failed: TypeError": {
        "callbacks": [of_lightning("callbacks.GradientAccumulationScheduler", scheduling={})]
    },
    "LearningRateFinder failed: AttributeError": {
        "callbacks": [of_lightning("callbacks.LearningRateFinder", attr_name="rate")]
    },
    "BatchSizeFinder failed: ValueError": {"callbacks": [of_lightning("callbacks.BatchSizeFinder", mode="fast")]},
    "trainer.callbacks: there are two EarlyStopping": {
        "callbacks": [of_lightning("callbacks.EarlyStopping", monitor="val/loss")] * 2
    },
    "trainer.logger: CSVLogger failed: ZeroDivisionError": {
        "logger": of_lightning("loggers.CSVLogger", save_dir=".", flush_logs_every_n_steps=0),
        "log_every_n_steps": 1,
    },
    "trainer.accumulate_grad_batches must be at least 1": {"accumulate_grad_batches": 0},
    "trainer.check_val_every_n_epoch must be at least 1": {"check_val_every_n_epoch": 0},
    "trainer.val_check_interval must be above 0": {"val_check_interval": 0.0},
    "trainer.gradient_clip_val must be at least 0": {"gradient_clip_val": -1.0},
    "StochasticWeightAveraging begins in epoch 3, but the fit has 2 epochs": {
        "callbacks": [of_lightning("callbacks.StochasticWeightAveraging", swa_lrs=0.1, swa_epoch_start=3)],
        "max_epochs": 2,
    },
    "StochasticWeightAveraging needs a number of epochs: set trainer.max_epochs, and leave": {
        "callbacks": [of_lightning("callbacks.StochasticWeightAveraging", swa_lrs=0.1, swa_epoch_start=1)],
        "max_epochs": 2,
        "max_steps": 3,
    },
    "ThroughputMonitor failed: AssertionError": {
        "callbacks": [of_lightning("callbacks.ThroughputMonitor", batch_size_fn="builtins.len", window_size=0)]
    },
    "StochasticWeightAveraging failed: ValueError swa_lr must have": {
        "callbacks": [of_lightning("callbacks.StochasticWeightAveraging", swa_lrs=[0.1, 0.2], swa_epoch_start=1)],
        "max_epochs": 2,
    },
}


@pytest.mark.parametrize(
    "message", [pytest.param(name, marks=[pytest.mark.nightly] * (place > 8)) for place, name in enumerate(UNFIT)]
)
def test_options_that_lightning_cannot_use_are_one_line(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert message in error_of(capsys, lambda: command("fit", trainer={"limit_val_batches": 1, **UNFIT[message]}))


SCHEDULES = "torch.optim.lr_scheduler"


@pytest.mark.parametrize(
    ("schedule", "options", "said"),
    [
        ("LambdaLR", {"lr_lambda": "math.exp"}, "LambdaLR cannot be saved with exp"),
        ("MultiplicativeLR", {"lr_lambda": "math.cos"}, "MultiplicativeLR cannot be saved with cos"),
    ],
)
def test_schedule_of_a_c_function_is_refused_in_one_line(
    schedule: str,
    options: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    model = {"init_args": {"lr_scheduler": {"class_path": f"{SCHEDULES}.{schedule}", "init_args": options}}}
    assert said in error_of(capsys, lambda: command("fit", model=model))
    command("fit", model=model, trainer={"enable_checkpointing": False})  # saves nothing


def test_functions_of_c_are_found_inside_of_chained_schedules() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    inner = LambdaLR(optimizer, math.cos)
    with pytest.raises(UsageError, match="cannot be saved with cos"):
        check_schedules([SequentialLR(optimizer, [ConstantLR(optimizer), inner], [1])])
    with pytest.raises(UsageError, match="cannot be saved with cos"):
        check_schedules([ChainedScheduler([inner])])
    check_schedules([LambdaLR(optimizer, lambda epoch: 0.9**epoch), LambdaLR(optimizer, partial(pow, 0.9))])


@pytest.mark.parametrize(
    "option",
    [
        {"fast_dev_run": True},
        {"log_every_n_steps": 5},
        pytest.param({"profiler": "simple"}, marks=pytest.mark.nightly),
        pytest.param({"detect_anomaly": True}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_barebones_trainer_refuses_what_it_disables_in_one_line(
    option: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    bare = {"barebones": True, "enable_progress_bar": None, "enable_model_summary": None, "num_sanity_val_steps": None}
    message = error_of(capsys, lambda: command("fit", trainer={**bare, **option}))
    assert message.startswith("trainer: ") and "barebones" in message


class Unsaved(ConstantLR):
    """Fail to return a state."""

    def state_dict(self) -> dict[str, Any]:
        raise AttributeError


@pytest.mark.parametrize(
    ("error", "model", "names"),
    [
        (ZeroDivisionError, {}, [f"{__name__}.Broken"]),
        # no error of the callback that saves it: a schedule whose state cannot be saved
        (AttributeError, {"class_path": f"{__name__}.Unsaved"}, []),
    ],
    ids=["callback", "schedule"],
)
def test_error_of_other_code_keeps_its_traceback(
    error: type[Exception],
    model: dict[str, Any],
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    used = [{"class_path": name, "init_args": {}} for name in names]
    schedule = {"lr_scheduler": model} if model else {}
    with pytest.raises(error):
        command("fit", model={"init_args": schedule}, trainer={"limit_val_batches": 1, "callbacks": used})


class Broken(callbacks.EarlyStopping):
    """Raise an error of its own at the start of training."""

    def __init__(self) -> None:
        super().__init__("val/loss")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise ZeroDivisionError
