"""Test that a signal ends every command with 128 + its number, wherever the program is, and leaves no false row."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from small import run

from hsakd_pl.cli.main import main
from hsakd_pl.commands.seeds import run_process
from hsakd_pl.data import DigitsDataModule
from hsakd_pl.export import Student
from hsakd_pl.runs.signals import Interrupted, stopped_by_signals

SIGNALS = [signal.SIGINT, signal.SIGTERM]
TABLE = "method,recipe,class,options,data,resnet8-resnet8\nteacher,a/baseline_{student},hsakd_pl.BaselineModule,,,-\n"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    Student("resnet8", **DigitsDataModule().description.saved()).save_pretrained(folder)
    return folder


def stopping(function: Callable[..., Any], signum: int) -> Callable[..., Any]:
    """Return the function with a signal that arrives while it runs."""

    def call(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signum)
        return function(*arguments, **options)

    return call


def photos() -> str:
    Path("photos").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16)).save(f"photos/{number}.png")
    return "photos"


def reading_a_picture(student: Path, signum: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(Image, "open", stopping(Image.open, signum))
    return ["predict", str(student), photos(), "--num_workers", "0"]


def reading_a_header(student: Path, signum: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(Image.Image, "getexif", stopping(Image.Image.getexif, signum))
    return ["predict", str(student), photos(), "--num_workers", "0"]


def reading_weights(student: Path, signum: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    torch.save({"state_dict": {}}, "last.ckpt")
    monkeypatch.setattr(torch, "load", stopping(torch.load, signum))
    return ["export", "last.ckpt", "out"]


def parsing_options(student: Path, signum: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    name = f"stops_by_{signum}"
    Path(f"{name}.py").write_text(f"import os\nos.kill(os.getpid(), {signum})\n")
    monkeypatch.syspath_prepend(".")
    return ["fit", "--model", f"{name}.Module", "--data", "hsakd_pl.DigitsDataModule"]


MOMENTS = [reading_a_picture, reading_a_header, reading_weights, parsing_options]


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_signal_is_no_fault_of_what_is_read(
    moment: Callable[[Path, int, pytest.MonkeyPatch], list[str]],
    signum: int,
    student: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = moment(student, signum, monkeypatch)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 128 + signum
    printed = capsys.readouterr().err
    assert f"stopped by {signal.Signals(signum).name}" in printed
    assert "Traceback" not in printed and "error:" not in printed
    assert not list(Path().glob("predictions*")) and not Path("out").exists() and not Path(".writer").exists()


class Object:
    """Refer to nothing."""


def in_finalizer(signum: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signum)

    Finalized()


def in_weak_reference(signum: int) -> None:
    value = Object()
    reference = weakref.ref(value, lambda _: os.kill(os.getpid(), signum))
    del value
    assert reference() is None


def in_garbage_collection(signum: int) -> None:
    def stop(phase: str, info: object) -> None:
        gc.callbacks.remove(stop)
        os.kill(os.getpid(), signum)

    gc.callbacks.append(stop)
    gc.collect()


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("place", [in_finalizer, in_weak_reference, in_garbage_collection])
def test_signal_is_not_lost_where_python_drops_exceptions(place: Callable[[int], None], signum: int) -> None:
    def go_on() -> None:
        place(signum)
        for _ in range(600):  # a signal just before a long sleep would wait for its end
            time.sleep(0.1)

    with pytest.raises(Interrupted) as end, stopped_by_signals():
        go_on()
    assert end.value.status == 128 + signum


class Late(pl.Callback):
    """Send a signal to this process when training has ended."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("command", ["fit", "sweep"])
def test_signal_after_the_last_step_ends_the_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seeds", "0"] if command == "sweep" else []
    with pytest.raises(SystemExit) as end:
        run(command, *options, trainer={"callbacks": "test_stopping.Late", "limit_val_batches": 1})
    assert end.value.code == 143
    assert "stopped by SIGTERM after the last step" in capsys.readouterr().err
    [result] = Path().rglob("result.json")
    assert '"finished": true' in result.read_text() and not list(Path().rglob("test.json"))


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("command", ["sweep", "bench"])
@pytest.mark.parametrize("told", ["this process", "its task"])
def test_no_further_task_starts_after_a_signal(
    told: str, command: str, signum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End while a task ends by itself, or because the task was stopped."""
    started = []
    late = f"import os, time\nos.kill({os.getpid()}, {int(signum)})\ntime.sleep(0.1)"
    stopped = f"import os, signal\nsignal.signal({int(signum)}, signal.SIG_DFL)\nos.kill(os.getpid(), {int(signum)})"

    class Task(subprocess.Popen[bytes]):
        def __init__(self, words: list[str]) -> None:
            started.append(words)
            super().__init__([sys.executable, "-S", "-c", late if told == "this process" else stopped])

    Path("mine.csv").write_text(TABLE)
    Path("config.yaml").write_text("trainer:\n  default_root_dir: runs\n")
    digits = ["--model", "hsakd_pl.BaselineModule", "--data", "hsakd_pl.DigitsDataModule"]
    commands = {
        "sweep": ["sweep", "--seeds", "0-2", "--config", "config.yaml", *digits, "--model.init_args.network=resnet8"],
        "bench": ["bench", "mine.csv", "--seeds", "0-2"],
    }
    monkeypatch.setattr(subprocess, "Popen", Task)
    with pytest.raises(SystemExit) as end:
        main(commands[command])
    assert end.value.code == 128 + signum and len(started) == 1


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_killed_task_has_the_status_of_a_shell(signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen
    script = f"import os\nos.kill(os.getpid(), {int(signum)})"
    monkeypatch.setattr(subprocess, "Popen", lambda words: popen([sys.executable, "-S", "-c", script]))
    assert run_process([], debug=False) == 128 + signum


def test_task_that_does_not_hear_ctrl_c_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen
    script = "import time\ntime.sleep(60)"
    monkeypatch.setattr(subprocess, "Popen", lambda words: popen([sys.executable, "-S", "-c", script]))
    monkeypatch.setattr("hsakd_pl.commands.seeds.SECONDS_TO_OBEY", 0.01)
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(Interrupted), stopped_by_signals():
        run_process([], debug=False)


def swallow() -> None:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)


def replace() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
        raise ValueError("the file is broken") from error


def swallow_then_fail() -> None:
    swallow()
    raise OSError("no space")


@pytest.mark.parametrize("library", [swallow, replace, swallow_then_fail])
def test_signal_that_a_library_catches_still_ends_the_program(library: Callable[[], None]) -> None:
    with pytest.raises(Interrupted) as end, stopped_by_signals():
        library()
    assert end.value.status == 128 + signal.SIGTERM
