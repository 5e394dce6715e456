"""Test a user's configurations, folders, loggers and callbacks on the command line."""

import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import error_of, run

from hsakd_pl.cli.main import main


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def aliases(levels: int) -> str:
    """Return YAML of ten values, each aliased ten times per level."""
    lines = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", *lines])


YAML: dict[str, tuple[bytes, str]] = {
    "a key twice": (
        b"trainer: {max_epochs: 1}\ntrainer: {max_epochs: 9}\n",
        "the key 'trainer' is repeated in line 2",
    ),
    "a key twice inside": (b"trainer:\n  max_epochs: 1\n  max_epochs: 9\n", "the key 'max_epochs' is repeated"),
    "a key twice in braces": (b"data: {init_args: {seed: 1, seed: 2}}", "the key 'seed' is repeated"),
    "too deep": (b"a: " + b"[" * 10_000 + b"]" * 10_000, "nested more than 50 levels deep"),
    "too deep by lines": (b"".join(b" " * level + b"a:\n" for level in range(200)), "nested more than 50 levels deep"),
    "aliases of aliases": (aliases(9).encode(), "expand to more than 100000 values"),
    "in itself": (b"a: &a [*a]", "expand to more than 100000 values"),
    "UTF-16": ("seed_everything: 1 # Löwe".encode("utf-16"), "is not UTF-8 text .*save it as UTF-8"),
    "Latin-1": ("# Löwe\nseed_everything: 1".encode("latin-1"), "is not UTF-8 text .*save it as UTF-8"),
    "UTF-32": ("seed_everything: 1".encode("utf-32"), "is not UTF-8 text|not valid YAML"),
    "a tag": (b"a: !!python/object/apply:os.mkdir [trace]", "not valid YAML: could not determine a constructor|tag"),
    "control characters": (b"a: \x02\x01", "not valid YAML"),
    "a list": (b"- 1\n- 2\n", "bad.yaml|config"),
    "unclosed": (b"trainer: {max_epochs: 1", "not valid YAML"),
}


@pytest.mark.parametrize("name", YAML)
@pytest.mark.parametrize("form", ["--config {}", "--config={}", "-c {}"])
def test_invalid_configuration_file_raises_naming_file(
    name: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, reason = YAML[name]
    Path("bad.yaml").write_bytes(content)
    message = error_of(capsys, lambda: run("fit", *form.format("bad.yaml").split()))
    assert "bad.yaml" in message and re.search(reason, message), message
    assert not Path("trace").exists()


@pytest.mark.parametrize("value", ["{network: resnet8, network: resnet14}", "[" * 100, "&a [*a]"])
def test_invalid_yaml_option_raises_naming_option(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "init_args" in error_of(capsys, lambda: run("fit", "--model.init_args", value))


def test_configuration_with_byte_order_mark_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbfseed_everything: 4\n")
    assert json.loads((run("fit", "--config", "bom.yaml") / "result.json").read_text())["seed"] == 4


LOGGER = "pytorch_lightning.loggers"


@pytest.mark.parametrize("form", ["name", "class", "arguments", "list"])
def test_logger_writes_into_run_folder(form: str) -> None:
    csv = {"class_path": f"{LOGGER}.CSVLogger"}
    logger: Any = {"arguments": {**csv, "init_args": {"name": "mine"}}, "list": [csv, {**csv}]}.get(form, csv)
    options = ["--trainer.logger", "CSVLogger"] if form == "name" else []
    folder = run("fit", *options, trainer={} if form == "name" else {"logger": logger})
    name = "mine" if form == "arguments" else "lightning_logs"
    assert (folder / name / "version_0" / "metrics.csv").exists()
    assert not Path("lightning_logs").exists()


def test_logger_save_dir_is_kept() -> None:
    run("fit", trainer={"logger": {"class_path": f"{LOGGER}.CSVLogger", "init_args": {"save_dir": "there"}}})
    assert Path("there/lightning_logs/version_0/metrics.csv").exists()


@pytest.mark.parametrize("logger", ["NeptuneLogger", "CometLogger"])
def test_missing_logger_package_raises_with_install_command(logger: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = logger.removesuffix("Logger").lower()
    try:
        __import__(package)
    except ImportError:
        assert package in error_of(capsys, lambda: run("fit", "--trainer.logger", logger)).lower()
    else:
        pytest.skip(f"{package} is installed")


CHECKPOINT = "pytorch_lightning.callbacks.ModelCheckpoint"


@pytest.mark.parametrize(
    "arguments",
    [{}, {"monitor": "val/acc", "mode": "max"}, {"save_last": True}, {"every_n_train_steps": 1, "save_top_k": -1}],
    ids=str,
)
def test_custom_checkpoint_callback_works_next_to_builtin(arguments: dict[str, Any]) -> None:
    callback = {"class_path": CHECKPOINT, "init_args": {"dirpath": "mine", "filename": "{step}", **arguments}}
    folder = run("fit", trainer={"callbacks": [callback]})
    assert list(Path("mine").glob("*.ckpt")) and (folder / "last.ckpt").exists() and (folder / "best.ckpt").exists()
    run("fit", "--ckpt_path", "last", trainer={"callbacks": [callback], "max_epochs": 2})
    run("test", "--ckpt_path", "best", trainer={"callbacks": [callback]})


def test_barebones_trainer_writes_nothing() -> None:
    plain = {"enable_progress_bar": None, "enable_model_summary": None, "num_sanity_val_steps": None}
    run("fit", trainer={"barebones": True, **plain})
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.parametrize("where", ["default_root_dir", "ckpt_path", "root", "weights", "predict_dir"])
def test_url_as_path_is_refused(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = "https://example.org/folder"
    options: dict[str, tuple[str, list[str], dict[str, Any]]] = {
        "default_root_dir": ("fit", [], {"trainer": {"default_root_dir": url}}),
        "ckpt_path": ("fit", ["--ckpt_path", url], {}),
        "root": ("fit", [], {"data": {"class_path": "hsakd_pl.CIFAR100DataModule", "init_args": {"root": url}}}),
        "weights": ("fit", [], {"model": {"init_args": {"weights": url}}}),
        "predict_dir": ("predict", [], {"data": {"init_args": {"predict_dir": url}}}),
    }
    command, given, changes = options[where]
    if command == "predict":
        changes["model"] = {"init_args": {"weights": "random"}}
    assert f"{url} is a URL" in error_of(capsys, lambda: run(command, *given, **changes))


def test_tilde_expands_to_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run("fit", trainer={"default_root_dir": "~/run"})
    run("test", "--ckpt_path", "~/run/last.ckpt")
    assert (tmp_path / "home/run/result.json").exists() and not Path("~").exists()


def test_home_of_unknown_user_raises(capsys: pytest.CaptureFixture[str]) -> None:
    assert "~nobody_here/run has no home folder" in error_of(capsys, lambda: main(["report", "~nobody_here/run"]))


def test_runs_folder_that_is_a_file_raises(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").write_text("precious")
    assert "runs" in error_of(capsys, lambda: run("fit"))
    assert Path("runs").read_text() == "precious"


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EDQUOT])
@pytest.mark.parametrize("file", ["last.ckpt", "best.ckpt", "result.json"])
def test_full_disk_keeps_existing_files(
    kind: int, file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run("fit")
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].startswith(f"{file}."):
            raise OSError(kind, os.strerror(kind), file)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    options = {"max_epochs": 30, "limit_val_batches": 1} if file == "best.ckpt" else {"max_epochs": 2}
    message = error_of(capsys, lambda: run("fit", "--ckpt_path", "last", trainer=options))
    assert os.strerror(kind) in message and file in message
    assert (folder / file).read_bytes() == before[folder / file]
    assert not list(folder.glob("*.partial"))


def test_invalid_checkpoints_raise_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    last = run("fit") / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "global_step"):
        torch.save({key: value for key, value in content.items() if key != part}, "part.ckpt")
        message = error_of(capsys, lambda: run("fit", "--ckpt_path", "part.ckpt", trainer={"max_epochs": 2}))
        assert f"part.ckpt is not a Lightning checkpoint, {part} is missing" in message
    for other in (content["state_dict"], [1], {"state_dict": 3, "pytorch-lightning_version": "2"}):
        torch.save(other, "part.ckpt")
        assert "part.ckpt" in error_of(capsys, lambda: run("test", "--ckpt_path", "part.ckpt"))


ROW = {"config": ["a.yaml"], "last_val_acc": 0.5, "best_val_acc": None, "images_per_second": 1.0, "seconds": 2}
ROWS: dict[str, tuple[Any, str]] = {
    **{f"without {field}": ({k: v for k, v in ROW.items() if k != field}, field) for field in ROW},
    "a text for a number": ({**ROW, "seconds": "2"}, "seconds is '2'"),
    "a list for a number": ({**ROW, "last_val_acc": [1]}, "last_val_acc"),
    "true for a number": ({**ROW, "seconds": True}, "seconds is True"),
    "no names": ({**ROW, "config": "a.yaml"}, "config is 'a.yaml'"),
    "numbers for names": ({**ROW, "config": [1]}, "config[0] is 1"),
    "an option for a protocol": ({**ROW, "protocol": 3}, "protocol is 3"),
    "a protocol without its hash": ({**ROW, "protocol": {"options": {}}}, "protocol.hash is missing"),
    "a text for whether it ended": ({**ROW, "finished": "no"}, "finished is 'no'"),
    "a negative seed": ({**ROW, "seed": -1}, "seed is -1"),
    "a list": ([ROW], "it is not an object"),
    "nothing": (None, "it is not an object"),
}


@pytest.mark.parametrize("name", ROWS)
def test_invalid_result_row_raises_naming_file(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, reason = ROWS[name]
    Path("runs").mkdir()
    Path("runs/result.json").write_text(json.dumps(content))
    message = error_of(capsys, lambda: main(["report", "runs"]))
    assert message.startswith("runs/result.json is not a result (") and reason in message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"seconds": NaN}', b"[" * 100_000, json.dumps(ROW).encode("utf-16")]
)
def test_result_row_that_is_no_json_raises_naming_file(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    Path("runs/result.json").write_bytes(content)
    assert "runs/result.json" in error_of(capsys, lambda: main(["report", "runs"]))


def test_report_shows_markup_in_names_literally(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    Path("runs/result.json").write_text(json.dumps({**ROW, "config": ["[/red][bold]x.yaml"]}))
    main(["report", "runs"])
    assert "[bold]x" in capsys.readouterr().out


def test_result_rows_are_not_written_through_links() -> None:
    folder = run("fit")
    Path("precious").write_text("mine")
    (folder / "rows.jsonl").symlink_to(Path("precious").resolve())
    run("fit", "--ckpt_path", "last", trainer={"max_epochs": 2})
    main(["report", str(folder)])
    assert Path("precious").read_text() == "mine"
