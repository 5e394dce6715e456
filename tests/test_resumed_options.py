"""Test which options a resumed run keeps, which may change, and that its record says so."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import error_of, loader, make, run, trainer

from hsakd_pl import DigitsDataModule
from hsakd_pl.errors import UsageError

ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 2}}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def resume(*options: str, **changes: Any) -> dict[str, Any]:
    """Train one more epoch and return the row."""
    changes["trainer"] = {"max_epochs": 2, **changes.get("trainer", {})}
    folder = run("fit", "--ckpt_path", "last", *options, **changes)
    return row(folder)


def row(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("model.init_args.lr", {"model": {"init_args": {"lr": 0.02}}}),
        ("model.init_args.momentum", {"model": {"init_args": {"momentum": 0.8}}}),
        ("model.init_args.nesterov", {"model": {"init_args": {"nesterov": False}}}),
        ("model.init_args.weight_decay", {"model": {"init_args": {"weight_decay": 0.1}}}),
        ("model.init_args.milestones", {"model": {"init_args": {"milestones": [1]}}}),
        ("model.init_args.warmup_epochs", {"model": {"init_args": {"warmup_epochs": 1}}}),
        ("model.init_args.optimizer", {"model": {"init_args": {"optimizer": ADAM}}}),
        ("model.init_args.lr_scheduler", {"model": {"init_args": {"lr_scheduler": COSINE}}}),
        ("model.init_args.weights", {"model": {"init_args": {"weights": "random"}}}),
        ("seed_everything", {"seed_everything": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ineffective_option_of_resumed_run_raises(
    option: str, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("fit")
    before = (folder / "last.ckpt").read_bytes()
    message = error_of(capsys, lambda: resume(**changes))
    assert message.startswith(option) and "the resumed run was started with" in message
    assert (folder / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "old", "new", "changes"),
    [
        ("data.init_args.batch_size", 64, 32, {"data": {"init_args": {"batch_size": 32}}}),
        ("data.init_args.train_fraction", 1.0, 0.5, {"data": {"init_args": {"train_fraction": 0.5}}}),
        ("data.init_args.augment", True, False, {"data": {"init_args": {"augment": False}}}),
        ("data.class_path", None, None, {"data": {"class_path": "test_resumed_options.OtherDigits"}}),
        ("trainer.precision", None, "bf16-mixed", {"trainer": {"precision": "bf16-mixed"}}),
        ("trainer.gradient_clip_val", None, 1.0, {"trainer": {"gradient_clip_val": 1.0}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changed_option_of_resumed_run_is_logged_and_recorded(
    option: str, old: Any, new: Any, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run("fit")
    (found,) = [change for change in resume(**changes)["changes"] if change["option"] == option]
    assert f"From step 2 on, {option} is {found['to']} instead of {found['from']}" in caplog.text
    assert found["step"] == 2
    if new is not None:
        assert (found["from"], found["to"]) == (old, new)


class OtherDigits(DigitsDataModule):
    """Provide the digits under another name."""


def test_option_changes_of_several_resumes_accumulate() -> None:
    run("fit")
    resume(data={"init_args": {"batch_size": 32}})
    found = resume(data={"init_args": {"batch_size": 32}}, trainer={"max_epochs": 3})["changes"]
    assert [change["option"] for change in found] == ["data.init_args.batch_size", *["trainer.max_epochs"] * 2]


def test_paths_and_workers_may_change_on_resume() -> None:
    run("fit")
    options = {"init_args": {"num_workers": 1, "root": "elsewhere"}}
    assert [each["option"] for each in resume(data=options)["changes"]] == ["trainer.max_epochs"]


def test_data_options_cannot_change_mid_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    stop = {"class_path": "test_interruptions.Signal", "init_args": {"signum": 2, "at": 1}}
    with pytest.raises(SystemExit):
        run("fit", trainer={"limit_train_batches": 4, "callbacks": [stop]})
    for option, value in {"batch_size": 32, "train_fraction": 0.5, "seed": 5}.items():
        changed = {"data": {"init_args": {option: value}}, "trainer": {"limit_train_batches": 4}}
        assert "the epoch that is resumed began with" in error_of(capsys, partial(resume, **changed))
    resume(trainer={"limit_train_batches": 4})


@pytest.mark.parametrize(
    "options", [{"lr": 0.02}, {"milestones": [3]}, {"weight_decay": 0.0}, {"nesterov": False}], ids=str
)
def test_ineffective_option_raises_on_resume_in_python(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer(tmp_path, max_epochs=1).fit(make("baseline", lr=0.01), loader())
    last = tmp_path / "last.ckpt"
    with pytest.raises(UsageError, match=rf"{next(iter(options))} is .* was started with"):
        trainer(max_epochs=2).fit(make("baseline", **{"lr": 0.01, **options}), loader(), ckpt_path=last)
    trainer().validate(make("baseline", **options), loader(), ckpt_path=last, verbose=False)
    trainer(max_epochs=2).fit(make("baseline", lr=0.01), loader(), ckpt_path=last)


def test_resumed_finished_run_keeps_its_row(caplog: pytest.LogCaptureFixture) -> None:
    folder = run("fit")
    before = (folder / "result.json").read_text()
    run("fit", "--ckpt_path", "last")
    assert (folder / "result.json").read_text() == before
    assert "Nothing is left to train: the run has its 1 epoch" in caplog.text


def test_missing_row_of_finished_run_is_written_on_resume() -> None:
    folder = run("fit")
    before = row(folder)
    (folder / "result.json").unlink()
    run("fit", "--ckpt_path", "last")
    found = row(folder)
    varying = ("seconds", "device_hours", "commit", "resumes")
    assert {key: found[key] for key in found if key not in varying} == {
        key: before[key] for key in before if key not in varying
    }
    assert found["last_val_acc"] is not None and found["metrics"]["train/loss"] > 0


def test_row_of_unvalidated_run_has_no_accuracy() -> None:
    folder = run("fit", trainer={"limit_val_batches": 0})
    run("fit", "--ckpt_path", "last", trainer={"limit_val_batches": 0})
    assert row(folder)["last_val_acc"] is None and row(folder)["metrics"]["train/loss"] > 0


@pytest.mark.parametrize("how", ["moved", "copied", "copied without best.ckpt"])
def test_better_old_best_survives_move_or_copy(how: str) -> None:
    folder = run("fit", trainer={"max_epochs": 2})
    content = torch.load(folder / "last.ckpt", weights_only=True)
    (best,) = (state for key, state in content["callbacks"].items() if key.startswith("BestCheckpoint"))
    best["best_model_score"] = torch.tensor(0.99)  # so that no epoch is better
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(0.99))
    best["kth_value"] = torch.tensor(0.99)
    torch.save(content, folder / "last.ckpt")
    (shutil.move if how == "moved" else shutil.copytree)(str(folder), "elsewhere")
    if how == "copied without best.ckpt":
        Path("elsewhere/best.ckpt").unlink()
    kept = [(path, path.read_bytes()) for path in Path().rglob("best.ckpt")]
    run("fit", "--ckpt_path", "last", trainer={"max_epochs": 3, "default_root_dir": "elsewhere"})
    assert row(Path("elsewhere"))["best_val_acc"] == pytest.approx(0.99)
    assert [(path, path.read_bytes()) for path in Path().rglob("best.ckpt")] == kept


def test_checkpoint_of_older_version_resumes_with_best_score() -> None:
    """Remove options and metrics, which are then not compared, and use the older callback names."""
    folder = run("fit")
    content = torch.load(folder / "last.ckpt", weights_only=True)
    states = content["callbacks"]
    (key,) = (key for key in states if key.startswith("BestCheckpoint"))
    best = states[key.replace("Best", "Model", 1)] = states.pop(key)
    best |= dict.fromkeys(("best_model_score", "kth_value"), torch.tensor(0.99))
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(0.99))
    states["ResultWriter"] = {name: states["ResultWriter"]["spent"][name] for name in ("seconds", "images")}
    torch.save(content, folder / "last.ckpt")
    found = resume(model={"init_args": {"branch_metrics_every": 5}})
    assert found["best_val_acc"] == pytest.approx(0.99) and found["changes"] == [] and found["epochs"] == 2


def test_best_checkpoint_is_kept_after_move() -> None:
    folder = run("fit")
    shutil.move(str(folder), "elsewhere")
    run("fit", "--ckpt_path", "last", trainer={"max_epochs": 4, "default_root_dir": "elsewhere"})
    found = row(Path("elsewhere"))
    assert not folder.exists() and Path("elsewhere/best.ckpt").exists()
    assert found["best_val_acc"] >= found["last_val_acc"]


@pytest.mark.parametrize("stray", ["last-v1.ckpt", "last.ckpt.7-8d7f0a9be21c3f65.partial", "last (copy).ckpt"])
def test_newer_stray_file_is_not_taken_for_last_checkpoint(stray: str) -> None:
    folder = run("fit")
    (folder / stray).write_bytes(b"newer")
    assert resume()["epochs"] == 2


@pytest.mark.parametrize("keyword", ["last", "best", "hpc"])
@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
def test_ckpt_path_keyword_without_file_raises(command: str, keyword: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, lambda: run(command, "--ckpt_path", keyword))
    assert message.startswith(f"ckpt_path {keyword}: runs/BaselineModule has no ")


@pytest.mark.parametrize("keyword", ["last", "best"])
@pytest.mark.parametrize("command", ["test", "validate"])
def test_ckpt_path_keyword_with_file_is_found(command: str, keyword: str) -> None:
    run("fit")
    run(command, "--ckpt_path", keyword)
