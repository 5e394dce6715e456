"""Test TensorBoard, Weights & Biases and MLflow by reading back their own files."""

import json
import os
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import wandb
from mlflow.tracking import MlflowClient
from PIL import Image
from small import error_of, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from hsakd_pl.cli.main import main

OVERLAYS = Path(__file__).parents[1] / "configs/trainer"
NAMES = ["tensorboard", "wandb", "mlflow"]
Points = dict[str, list[tuple[int, float]]]  # metric -> logged steps and values


class KilledError(Exception):
    """Raised to end the process."""


class Kill(pl.Callback):
    """End the process before step ``at``, unless it was restarted."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at and not Path("killed").exists():
            Path("killed").touch()
            raise KilledError


@pytest.fixture(scope="module", autouse=True)
def no_process_left() -> Iterator[None]:
    """Stop W&B's service after the last test: a process starts it only once."""
    yield
    wandb.teardown()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change to an empty working folder without a network, and undo what the loggers change in the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    wandb.finish()


def fit(logger: str, *options: str, folder: str = "run", **changes: Any) -> Path:
    """Train two epochs of two steps with the overlay of a logger."""
    Path(folder).mkdir(exist_ok=True)
    limits = {"max_epochs": 2, "limit_val_batches": 1, "default_root_dir": folder}
    overlay = ["--config", str(OVERLAYS / f"{logger}.yaml")]
    return run("fit", *overlay, *options, trainer={**limits, **changes.pop("trainer", {})}, **changes)


def killed_fit(logger: str) -> None:
    """Kill a fit in its second epoch after the learning rate was logged, which is in no checkpoint."""
    with pytest.raises(KilledError):
        fit(logger, trainer={"callbacks": [{"class_path": "test_loggers.Kill", "init_args": {"at": 3}}]})
    wandb.finish()


def events() -> EventAccumulator:
    """Return the events of TensorBoard's only run."""
    (folder,) = Path("run/tensorboard").iterdir()
    return EventAccumulator(str(folder)).Reload()


def records(path: Path) -> Iterator[Record]:
    """Return the records of a W&B file: a 7-byte header, 32 KiB blocks of record parts with CRC, length and type."""
    content, record, at = path.read_bytes(), b"", 7
    while at + 7 < len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        if at + 7 + length > len(content):
            return  # still being written
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record or its last part
            yield Record.FromString(record)
            record = b""


def wandb_records() -> list[Record]:
    """Return the records of all starts of W&B's only run; its service may write the last ones after the run."""
    files = sorted(Path("run/wandb").glob("offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1
    while not all("exit" in [record.WhichOneof("record_type") for record in records(path)] for path in files):
        time.sleep(0.05)
    return [record for path in files for record in records(path)]


def mlflow_run() -> tuple[MlflowClient, Any]:
    client = MlflowClient(f"file:{Path('run/mlruns').resolve()}")
    experiment = client.get_experiment_by_name("hsakd")
    (only,) = client.search_runs([experiment.experiment_id])
    return client, only


def points(logger: str) -> Points:
    wandb.finish()
    if logger == "tensorboard":
        found = events()
        return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    if logger == "mlflow":
        client, only = mlflow_run()
        histories = {key: client.get_metric_history(only.info.run_id, key) for key in only.data.metrics}
        return {key: [(metric.step, metric.value) for metric in history] for key, history in histories.items()}
    logged: Points = defaultdict(list)
    for record in wandb_records():
        row = {item.nested_key[0] or item.key: json.loads(item.value_json) for item in record.history.item}
        for key, value in row.items():
            if isinstance(value, int | float):
                logged[key].append((row.get("trainer/global_step", -1), value))
    return logged


def row() -> dict[str, Any]:
    return json.loads(Path("run/result.json").read_text())


@pytest.mark.parametrize("logger", NAMES)
def test_logged_metrics_are_in_run_folder_and_equal_result(logger: str) -> None:
    fit(logger)
    assert {path.name for path in Path().iterdir()} == {"run", "config.yaml"}
    found, result = points(logger), row()
    for name, value in result["metrics"].items():
        assert found[name][-1] == (3, pytest.approx(value, rel=1e-5)), name
    assert [step for step, _ in found["train/loss"]] == [1, 3]


@pytest.mark.parametrize("logger", NAMES)
def test_loggers_receive_result_curves_and_options(logger: str) -> None:
    fit(logger)
    shown, result = points(logger), row()
    if logger == "wandb":
        logged = wandb_records()
        summary = {each.key: each.value_json for record in logged for each in record.summary.update}
        assert json.loads(summary["result"]) == result
        options = {each.key: each.value_json for record in logged for each in record.config.update}
        assert json.loads(options["network"]) == "resnet8"
        (picture,) = Path("run/wandb").rglob("curves_*.png")
        assert picture.read_bytes() == Path("run/curves.png").read_bytes()
        return
    assert shown["result/last_val_acc"] == [(4, pytest.approx(result["last_val_acc"]))]
    if logger == "tensorboard":
        found = events()
        (text,) = found.Tensors("result/text_summary")
        assert json.loads(text.tensor_proto.string_val[0]) == result
        sizes = [(picture.width, picture.height) for picture in found.Images("curves")]
        assert sizes == [Image.open("run/curves.png").size]
        assert "_hparams_/session_start_info" in found.summary_metadata
        (options_file,) = Path("run/tensorboard").rglob("hparams.yaml")
        assert "network: resnet8" in options_file.read_text()
    else:
        client, only = mlflow_run()
        names = sorted(artifact.path for artifact in client.list_artifacts(only.info.run_id))
        assert names == ["curves.png", "result.json"] and only.data.params["network"] == "resnet8"
        assert only.info.status == "FINISHED"


@pytest.mark.parametrize("how", ["resumed", "requeued"])
@pytest.mark.parametrize("logger", NAMES)
def test_killed_run_resumes_as_same_logger_run(logger: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "requeued":
        for name in ("NTASKS", "NNODES", "JOB_ID"):
            monkeypatch.setenv(f"SLURM_{name}", "1")
        for name in ("PROCID", "LOCALID", "NODEID"):
            monkeypatch.setenv(f"SLURM_{name}", "0")
    killed_fit(logger)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1" if how == "requeued" else "0")
    fit(logger, *(["--ckpt_path", "last"] if how == "resumed" else []))
    found, result = points(logger), row()
    assert found["val/acc"][-1][1] == pytest.approx(result["last_val_acc"])
    for name in ("val/acc", "train/loss"):
        assert [step for step, _ in found[name]] == [1, 3]
    rates = found["lr-SGD"]  # of the second epoch logged before the kill and after it
    assert [step for step, _ in sorted(set(rates))] == [0, 2]
    assert len(rates) == (2 if logger == "tensorboard" else 3)  # the others keep both, which are equal


def test_run_resumed_in_another_folder_is_another_logger_run() -> None:
    fit("mlflow")
    fit("mlflow", "--ckpt_path", "run/last.ckpt", folder="other", trainer={"max_epochs": 3})
    runs = [path.parent.name for path in Path().glob("*/mlruns/*/*/meta.yaml")]
    assert len(set(runs)) == 2


def test_mlflow_run_resumes_with_changed_option() -> None:
    fit("mlflow", trainer={"max_epochs": 1})
    fit("mlflow", "--ckpt_path", "last", model={"init_args": {"branch_metrics_every": 1}})
    assert mlflow_run()[1].data.params["branch_metrics_every"] == "10"
    (change,) = [each for each in row()["changes"] if "branch" in each["option"]]
    assert change["to"] == 1


@pytest.mark.parametrize("logger", NAMES)
def test_missing_logger_package_raises_with_install_command(
    logger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, logger, None)
    message = error_of(capsys, lambda: fit(logger))
    assert message.endswith(f"needs the package {logger}: pip install {logger}")
    assert not os.path.exists("run/last.ckpt")


@pytest.mark.parametrize(
    "logger", ["wandb", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("tensorboard", "mlflow"))]
)
def test_tested_run_is_logged_in_its_own_run(logger: str) -> None:
    fit(logger)
    before = points(logger)
    main(["test", "--config", "run/config.yaml", "--ckpt_path", "best", "--trainer.limit_test_batches", "1"])
    found = points(logger)
    [(_, accuracy)] = found["test/acc"]
    assert accuracy == pytest.approx(json.loads(Path("run/test.json").read_text())["acc"], abs=1e-4)
    assert found["train/loss"] == before["train/loss"]
