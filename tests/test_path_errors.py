"""Test that what the operating system says about a path on the command line ends in one line."""

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small import error_of, run

from hsakd_pl import create_network
from hsakd_pl.cli.main import main
from hsakd_pl.data import Description
from hsakd_pl.data.statistics import FILE as STATISTICS_FILE
from hsakd_pl.export.student import Student, save

FILE = "file"
FOLDER = "folder"
BELOW_A_FILE = "file/below"
TOO_LONG = "x" * 300
LOCKED_FILE = "locked_file"
LOCKED = "locked"  # a folder that may be neither listed nor entered
BELOW_LOCKED = "locked/below"
READ_ONLY = "read_only"
ROW = {"config": ["a.yaml"], "last_val_acc": 0.5, "best_val_acc": None, "images_per_second": 1.0, "seconds": 2}
DESCRIPTION = Description(["a", "b", "c", "d"], 8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def permissions() -> Iterator[None]:
    """Make the permissions of files bind root as well, by suspending two capabilities of this process."""
    library = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    capabilities = (ctypes.c_uint32 * 6)()
    library.capget(header, capabilities)
    before = capabilities[0]
    capabilities[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert library.capset(header, capabilities) == 0
    yield
    capabilities[0] = before
    library.capset(header, capabilities)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permissions: None) -> Iterator[None]:
    """Write files and folders with and without permissions, and a valid input of each command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    for file in (FILE, LOCKED_FILE):
        Path(file).write_text("- 1")
    for folder in (FOLDER, LOCKED, READ_ONLY, "run", "exported", "images"):
        Path(folder).mkdir()
    Path("run/result.json").write_text(json.dumps(ROW))
    Path("run/metrics.csv").write_text("epoch,val/acc\n0,0.5\n")
    Image.new("RGB", (8, 8)).save("images/black.png")
    network = create_network("resnet8", 4, branches=False)
    save(Student(network, **DESCRIPTION.saved()), Path("exported"))
    torch.save({"net": network.state_dict(), "data": DESCRIPTION.saved()}, "four.pth")
    Path(LOCKED_FILE).chmod(0)
    Path(LOCKED).chmod(0)
    Path(READ_ONLY).chmod(0o500)
    yield
    Path(LOCKED).chmod(0o700)


INPUT_FILES = (FILE, FOLDER, BELOW_A_FILE, TOO_LONG, LOCKED_FILE, LOCKED, BELOW_LOCKED)
INPUT_FOLDERS = (FILE, FOLDER, TOO_LONG, LOCKED)
OUTPUT_FILES = (FOLDER, BELOW_A_FILE, TOO_LONG, BELOW_LOCKED)
OUTPUT_FOLDERS = (FILE, TOO_LONG, LOCKED, READ_ONLY)
# Arguments that take a path at {}, and the paths that are wrong there
COMMANDS = {
    "predict {} images": INPUT_FILES,
    "predict exported {}": INPUT_FOLDERS,
    "predict exported images --num_workers 0 --folder {}": OUTPUT_FOLDERS,
    "report {}": INPUT_FOLDERS,
    "report run --html {}": OUTPUT_FILES,
    "report run --plot {}.png": (BELOW_A_FILE, TOO_LONG, BELOW_LOCKED),
    "recipes {}": OUTPUT_FOLDERS,
    "export {}": INPUT_FILES,
    "export run --checkpoint {}": INPUT_FILES,
    "export four.pth --network resnet8 --formats safetensors {}": (FILE, BELOW_A_FILE, TOO_LONG, LOCKED, BELOW_LOCKED),
    "export four.pth --network resnet8 --formats safetensors --images {}": INPUT_FOLDERS,
    "bench {} --list": INPUT_FILES,
    "bench hsakd --dry-run --folder {}": OUTPUT_FOLDERS,
}
FIT_OPTIONS = {
    "--config {}": INPUT_FILES,
    "--ckpt_path {}": INPUT_FILES,
    "--model.weights {}": INPUT_FILES,
    "--model StudentModule --model.teacher resnet8 --model.teacher_weights {}": (FOLDER, TOO_LONG, LOCKED_FILE),
    "--data CIFAR100DataModule --data.root {}": INPUT_FOLDERS,
    "--data ImageFolderDataModule --data.root {}": INPUT_FOLDERS,
    "--data STL10DataModule --data.root {}": (FOLDER, LOCKED),
    "--data TinyImageNetDataModule --data.root {}": (FOLDER, LOCKED),
    "--data ImageNetDataModule --data.root {}": (FOLDER, LOCKED),
    "--trainer.default_root_dir {}": OUTPUT_FOLDERS,
}


def cases(commands: dict[str, tuple[str, ...]]) -> list[Any]:
    """Return a test for each command with each of its wrong paths."""
    return [
        pytest.param(command, path, id=command.format(path.replace(TOO_LONG, "too_long")))
        for command, paths in commands.items()
        for path in paths
    ]


@pytest.mark.parametrize(("command", "path"), cases(COMMANDS))
def test_wrong_path_of_command_is_one_line(command: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word.format(path) for word in command.split()]
    assert path in error_of(capsys, lambda: main(arguments))


@pytest.mark.parametrize(("options", "path"), cases(FIT_OPTIONS))
def test_wrong_path_of_fit_is_one_line(options: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word.format(path) for word in options.split()]
    assert path in error_of(capsys, lambda: run("fit", *arguments))


@pytest.mark.parametrize("name", ["train", "test_X.bin", "meta"])
@pytest.mark.parametrize("data", ["CIFAR100", "STL10", "TinyImageNet", "ImageNet", "ImageFolder"])
def test_locked_file_of_data_set_is_one_line(data: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("test_X.bin", "test_y.bin"):
        Path(FOLDER, file).write_bytes(b"")
    Path(FOLDER, name).touch(mode=0)
    Path(FOLDER, name).chmod(0)
    options = ["--data", f"{data}DataModule", "--data.root", FOLDER]
    assert FOLDER in error_of(capsys, lambda: run("fit", *options))


def test_statistics_of_read_only_data_are_stored_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("cats", "dogs"):
        Path("pets", name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, number, number)).save(f"pets/{name}/{number}.png")
    Path("pets").chmod(0o500)
    options = {"root": "pets", "image_size": 16, "val_fraction": 0.5, "num_workers": 0}
    run("fit", data={"class_path": "hsakd_pl.ImageFolderDataModule", "init_args": options})
    assert not Path("pets", STATISTICS_FILE).exists()
    assert Path("cache/hsakd_pl", STATISTICS_FILE).exists()
