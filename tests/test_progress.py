"""Test what a run prints before, during and after training: in a pipe, on a terminal, in a notebook."""

import csv
import hashlib
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from parity.recordings import read
from small import BATCH, loader, make, needs_kernel, run, trainer
from torch.utils.data import DataLoader, IterableDataset

from hsakd_pl import create_network
from hsakd_pl.data.progress import tracked
from hsakd_pl.fast.kernels.library import library
from hsakd_pl.networks import cost
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.records import progress
from hsakd_pl.records.progress import Progress
from hsakd_pl.records.watched import Watched

REPOSITORY = Path(__file__).resolve().parents[1]
SHOWN = {"enable_progress_bar": True}
LINE = (
    r"epoch {}  loss +[\d.]+  val +[\d.]+ %  best +[\d.]+ % \(\d\)  lr [\d.]+  [\d,]+ images/s  \d+ (s|min|h \d\d) left"
)
ADVERTS = "GPU available|TPU available|Tip:|litlogger|stopped:|FLOPs|eval mode|Mixed Precision|Seed set|LeafSpec"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def epochs(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("epoch ")]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> str:
    """Return everything that an action writes to a terminal, escape sequences included."""
    terminal, program = os.openpty()
    written: list[bytes] = []

    def read() -> None:
        while data := os.read(terminal, 10_000):
            written.append(data)
            if b"\x04" in data:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with open(program, "w") as stdout, monkeypatch.context() as context:
        for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}.items():
            context.setenv(name, value)
        context.setattr(sys, "stdout", stdout)
        context.setattr(sys, "stderr", stdout)
        context.setattr(progress, "SECONDS_BETWEEN_PICTURES", 0.0)
        rich.reconfigure()
        action()
        stdout.write("\x04")
        stdout.flush()
        reader.join()
    os.close(terminal)
    rich.reconfigure()
    return b"".join(written).decode()


def plain(written: str) -> str:
    """Return a terminal's text without colours and cursor movements."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written).replace("\r", "\n")


def test_pipe_gets_one_line_per_epoch_and_no_adverts() -> None:
    run_in_pipe = [sys.executable, "-m", "hsakd_pl", "fit", "--config", "config.yaml"]
    run("fit", trainer={**SHOWN, "fast_dev_run": True})  # writes the configuration
    options = ["--trainer.fast_dev_run=false", "--trainer.max_epochs=3", "--trainer.precision=64-true"]
    done = subprocess.run([*run_in_pipe, *options], capture_output=True, text=True, timeout=300, check=True)
    lines = done.stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("epoch"))
    assert [line.split()[0] for line in lines[:first]] == [
        "network",
        "data",
        "device",
        "PyTorch's",
        "training",
        "folder",
    ]
    for epoch, line in enumerate(lines[first : first + 3], 1):
        assert re.fullmatch(LINE.format(f"{epoch}/3"), line), line
    assert [line.split()[0] for line in lines[first + 3 :]] == ["result", "files", "next", "python", "python"]
    assert not re.findall(ADVERTS, done.stderr)
    assert "Validating on the test split" in done.stderr


@needs_kernel
@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ([], "C kernels: 3x3 convolutions by Winograd's algorithm, norms joined with ReLUs"),
        (["--trainer.precision=bf16-mixed"], "C kernels: norms joined with ReLUs"),
        (["--trainer.precision=64-true"], "PyTorch's operators alone: the C kernels compute in 32-true and bf16-mixed"),
        (["--model.init_args.fast=false"], "PyTorch's operators alone: fast is off"),
        (["--trainer.deterministic=true"], "PyTorch's operators alone: trainer.deterministic rules out sums"),
    ],
)
def test_first_lines_say_which_operators_a_cpu_uses(
    options: list[str], operators: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *options, trainer={**SHOWN, "fast_dev_run": True})
    torch.use_deterministic_algorithms(False)
    assert f"\n{'':9} {operators}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("capability", "reason"), [("DEFAULT", "the C kernels need AVX2"), ("AVX2", "the C kernels cannot be compiled")]
)
def test_first_lines_say_why_kernels_are_missing(
    capability: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    library.cache_clear()
    run("fit", trainer={**SHOWN, "fast_dev_run": True})
    library.cache_clear()
    assert f"\n{'':9} PyTorch's operators alone: {reason}" in capsys.readouterr().out


def test_terminal_shows_bar_and_keeps_finished_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_a_terminal(monkeypatch, lambda: run("fit", trainer={**SHOWN, "max_epochs": 2}))
    for epoch in (1, 2):
        assert len(re.findall(LINE.format(f"{epoch}/2"), plain(shown))) == 1
        assert re.search(rf"epoch {epoch}/2 ━+.* 1/2\s+loss .*  lr 0.01  [\d,]+ images/s", plain(shown))
        assert re.search(rf"epoch {epoch}/2, validation ━+.* 1/9", plain(shown))
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0  # the cursor is hidden, and back


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_and_prediction_show_a_bar(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"init_args": {}}
    if command == "predict":
        pillow = pytest.importorskip("PIL.Image")
        Path("images").mkdir()
        pillow.new("RGB", (16, 16)).save("images/one.png")
        data = {"init_args": {"predict_dir": "images"}}
    weights = {"init_args": {"weights": "random"}}
    shown = on_a_terminal(monkeypatch, lambda: run(command, trainer=SHOWN, data=data, model=weights))
    assert re.search(r"(validation|test|predict) ━+ +(9/9|1/1)", plain(shown))
    if command != "predict":  # the table is printed above the bar, which disappears
        assert plain(shown).rfind(" 9/9") > plain(shown).rfind("━┓") > 0


def test_resumed_run_continues_epoch_count_and_best(capsys: pytest.CaptureFixture[str]) -> None:
    training = {"limit_train_batches": 8, **SHOWN}
    run("fit", trainer={"max_epochs": 2, **training})
    run("fit", "--ckpt_path", "last", trainer={"max_epochs": 4, **training})
    lines = epochs(capsys.readouterr().out)
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2", "epoch 3/4", "epoch 4/4"]
    accuracies = [float(re.findall(r"val +([\d.]+)", line)[0]) for line in lines]
    for count, line in enumerate(lines, 1):
        assert float(re.findall(r"best +([\d.]+)", line)[0]) == max(accuracies[:count])
        best_epoch = int(re.findall(r"\((\d)\)", line)[0])
        assert accuracies[best_epoch - 1] == max(accuracies[:count])


class Endless(IterableDataset):  # type: ignore[type-arg]
    """Provide two batches without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([tuple(part[:2] for part in BATCH)] * 2)


def fit(kind: str = "baseline", train: Any = None, validate: bool = True, **options: Any) -> None:
    data = [loader() if train is None else train, loader() if validate else None]
    trainer(callbacks=[Progress()], enable_progress_bar=True, **options).fit(make(kind), *data)


@pytest.mark.parametrize("kind", ["student", "mutual", "probe"])
def test_every_module_prints_its_epoch_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit(kind)
    (line,) = epochs(capsys.readouterr().out)
    assert re.fullmatch(LINE.format("1/1"), line), line


def test_run_without_validation_shows_no_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    fit(validate=False, max_epochs=2)
    for line in epochs(capsys.readouterr().out):
        assert re.fullmatch(r"epoch \d/2  loss .*  lr 0.05  [\d,]+ images/s  \d+ s left", line), line


def test_unvalidated_epoch_shows_only_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    fit(max_epochs=3, check_val_every_n_epoch=2)
    assert ["val" in line for line in epochs(capsys.readouterr().out)] == [False, True, False]


def test_runs_of_unknown_length_show_progress(capsys: pytest.CaptureFixture[str]) -> None:
    endless: DataLoader[Any] = DataLoader(Endless(), batch_size=None)
    fit(train=endless, max_epochs=2)
    assert [line[:9] for line in epochs(capsys.readouterr().out)] == ["epoch 1/2", "epoch 2/2"]
    fit(train=endless, max_epochs=-1, max_steps=3)
    assert " 0 s left" in epochs(capsys.readouterr().out)[-1]
    fit(max_epochs=-1, max_time={"seconds": 0})
    fit(max_epochs=1, fast_dev_run=True)
    assert [line[:9] for line in epochs(capsys.readouterr().out)][-1] == "epoch 1/1"


def test_long_epoch_prints_intermediate_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    fit()
    shown = epochs(capsys.readouterr().out)
    assert [line.split("  ")[:2] for line in shown[:2]] == [["epoch 1/1", "1/2"], ["epoch 1/1", "2/2"]]


def test_custom_progress_bar_replaces_ours(capsys: pytest.CaptureFixture[str]) -> None:
    own = {"callbacks": [{"class_path": "pytorch_lightning.callbacks.TQDMProgressBar"}]}
    run("fit", trainer={**SHOWN, **own})
    printed = capsys.readouterr().out
    assert "Epoch 0: 100%" in printed and epochs(printed) == [] and printed.count("network") == 1


def test_disabled_progress_bar_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit")
    printed = capsys.readouterr().out
    assert epochs(printed) == [] and "network" not in printed


def test_loss_is_logged_every_n_steps() -> None:
    folder = run("fit", trainer={"max_epochs": 2, "limit_train_batches": 4, "log_every_n_steps": 2})
    (file,) = folder.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(file.read_text().splitlines()) if row["train/loss_step"]]
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    assert all(float(row["train/loss_step"]) > 0 for row in rows)


def test_introduction_names_teacher_with_hash_and_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = run("fit", trainer=SHOWN, module="TeacherModule") / "last.ckpt"
    last = re.search(r"val +([\d.]+) %", capsys.readouterr().out)
    arguments = {"network": "resnet8", "teacher": "resnet8", "teacher_weights": str(teacher)}
    run("fit", trainer=SHOWN, module="StudentModule", model={"init_args": arguments})
    block = capsys.readouterr().out
    assert f"sha256 {hashlib.sha256(teacher.read_bytes()).hexdigest()[:12]}" in block
    assert last is not None and re.search(rf"sha256 \w+, {float(last[1]):.1f}\d? %", block)
    assert "1,257 train, 540 test images, 16 x 16, 10 classes" in block


def test_multiply_adds_of_each_network_are_counted_once_per_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = []

    class Counter(cost.FlopCounterMode):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            counters.append(self)

    monkeypatch.setattr(cost, "FlopCounterMode", Counter)
    arguments = {"network": "resnet8", "teacher": "resnet8", "teacher_weights": "random"}
    run("fit", trainer=SHOWN, module="StudentModule", model={"init_args": arguments})
    assert len(counters) == 4  # student and teacher, with and without branches


def test_multiply_adds_equal_recordings() -> None:
    recorded = read("networks.json")["networks"]
    for name in ("wrn_16_2", "resnet20"):
        network = create_network(name, 100)
        assert multiply_adds(network, 32) == recorded[f"{name}_aux"]["multi_adds"]
        assert multiply_adds(network.without_branches, 32) == recorded[name]["multi_adds"]
        assert network.training


def test_watched_losses_arrive_in_order() -> None:
    watched = Watched()
    for step in range(3):
        watched.begin(step, torch.tensor(float(step)))
    assert list(watched.arrived()) == [(0, 0.0), (1, 1.0), (2, 2.0)] and list(watched.arrived(wait=True)) == []


def test_resume_without_progress_bar_does_not_warn() -> None:
    run("fit", trainer=SHOWN)
    with warnings.catch_warnings(record=True) as caught:
        run("fit", "--ckpt_path", "last", trainer={"max_epochs": 2})
    assert not [warning for warning in caught if "callbacks used to create" in str(warning.message)]


def test_long_reading_shows_a_bar_only_on_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(tracked("abc", 3, "Reading")) == [*"abc"] and capsys.readouterr().err == ""
    assert on_a_terminal(monkeypatch, lambda: list(tracked("abc", 3, "Reading"))) == "\x04"
    monkeypatch.setattr(sys.modules[tracked.__module__], "SECONDS_BEFORE_BAR", 0.0)
    assert "Reading ━" in plain(on_a_terminal(monkeypatch, lambda: list(tracked("abc", 3, "Reading"))))
    assert list(tracked("abc", 3, "Reading")) == [*"abc"] and capsys.readouterr().err == ""


@pytest.mark.slow
def test_notebook_shows_a_bar_that_disappears_and_no_adverts(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient, *_ = [pytest.importorskip(name) for name in ("nbformat", "nbclient", "ipykernel")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    options = 'max_epochs=2, limit_train_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False'
    lines = [
        "import hsakd_pl, pytorch_lightning as pl",
        "from hsakd_pl.records import progress",
        "progress.SECONDS_BETWEEN_PICTURES = 0.0",
        "hsakd_pl.quieten_lightning()",
        f"trainer = pl.Trainer({options}, callbacks=[progress.Progress()], enable_model_summary=False)",
        'trainer.fit(hsakd_pl.BaselineModule("resnet8", num_classes=10), hsakd_pl.DigitsDataModule())',
    ]
    cells = [
        "\n".join(lines),
        "accuracies = hsakd_pl.quickstart(teacher_epochs=1, student_epochs=1)",
        "from hsakd_pl.records.text_table import text_table\nprint(text_table([{'run': 'first'}]))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    pictures: list[str] = []

    class Client(nbclient.NotebookClient):  # type: ignore[name-defined, misc]
        def process_message(self, message: Any, *args: Any) -> Any:
            if message["msg_type"] == "update_display_data":
                pictures.append(message["content"]["data"]["text/plain"])
            return super().process_message(message, *args)

    Client(notebook, timeout=600).execute()
    fit, quick, table = (cell.outputs for cell in notebook.cells)
    for outputs in (fit, quick):  # a bar leaves nothing in the notebook that is saved
        assert {str(output.data) for output in outputs if output.output_type == "display_data"} == {
            "{'text/plain': ''}"
        }
    assert re.search(r"epoch 1/2 ━+", plain("".join(pictures))) and "loss" in "".join(pictures)
    printed, logged = (
        ["".join(output.text for output in outputs if output.get("name") == name) for outputs in (fit, quick)]
        for name in ("stdout", "stderr")
    )
    assert [line[:9] for line in epochs(printed[0])] == ["epoch 1/2", "epoch 2/2"]
    assert not re.findall(ADVERTS, logged[0])
    assert len(printed[1].splitlines()) == 4 and logged[1] == ""
    assert [output.get("text", "").split() for output in table] == [["run", "─────", "first"]]
