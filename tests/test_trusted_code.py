"""Test that neither the working folder nor files that a command reads choose the code that runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hsakd_pl.commands.export import data_of
from hsakd_pl.data import DigitsDataModule
from hsakd_pl.errors import UsageError

CODE = "open('executed', 'a').close()\n"
DIGITS = "hsakd_pl.DigitsDataModule"
PICTURES = "hsakd_pl.ImageFolderDataModule"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hsakd(*arguments: str, program: tuple[str, ...] = ("-m", "hsakd_pl")) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("command", [["report", "."], ["recipes"]], ids=" ".join)
def test_modules_in_the_working_folder_replace_no_others(command: list[str]) -> None:
    for name in ("numpy", "statistics", "yaml", "csv", "logging", "argparse", "pytorch_lightning"):
        Path(f"{name}.py").write_text(CODE)
    ended = hsakd(*command)
    assert "Traceback" not in ended.stderr and not Path("executed").exists()
    assert ended.returncode == (2 if command[0] == "report" else 0)  # there is no run


@pytest.mark.nightly
@pytest.mark.parametrize("program", ["-m hsakd_pl", "hsakd"])
def test_classes_in_the_working_folder_are_found_after_all_others(program: str) -> None:
    Path("bin").mkdir()
    Path("bin/hsakd").write_text("from hsakd_pl.cli.main import main\nmain()\n")
    Path("statistics.py").write_text(CODE)
    Path("mine.py").write_text("raise ValueError('mine was imported')\n")
    words = ("bin/hsakd",) if program == "hsakd" else ("-m", "hsakd_pl")
    ended = hsakd("fit", "--model", "mine.Module", "--data", DIGITS, program=words)
    assert "mine was imported" in ended.stderr and not Path("executed").exists()


NESTED = {"class_path": DIGITS, "init_args": {"seed": {"class_path": "foreign.Data"}}}
FOREIGN: dict[str, Any] = {
    "a class": {"class_path": "foreign.Data", "init_args": {"root": "x"}},
    "a path alone": "foreign.Data",
    "a nested class": NESTED,
    "a class in a list": {"class_path": DIGITS, "init_args": {"seed": [1, {"class_path": "foreign.Data"}]}},
    "a class named like the package": {"class_path": "hsakd_pl_data.foreign.Data"},
    "a configuration": "foreign.yaml",
    "a class as text": f"{{class_path: {DIGITS}, init_args: {{seed: foreign.Data}}}}",
    "an option's path alone": {"class_path": PICTURES, "init_args": {"augmentation": "foreign.Transform"}},
    "an option in YAML": {"class_path": PICTURES, "init_args": {"augmentation": "{class_path: foreign.Transform}"}},
    "an option in quotes": {"class_path": PICTURES, "init_args": {"augmentation": "'foreign.Transform'"}},
}


def run_with(data: Any) -> Path:
    """Return a run whose configuration names these data."""
    Path("foreign.py").write_text(
        f"{CODE}from torchvision.transforms.v2 import Identity\nfrom hsakd_pl import DigitsDataModule\n"
        "class Data(DigitsDataModule):\n    pass\nclass Transform(Identity):\n    pass\n"
    )
    Path("hsakd_pl_data").mkdir()
    Path("hsakd_pl_data/foreign.py").write_text(CODE)
    for name in ("foreign", "hsakd_pl"):
        Path(f"{name}.yaml").write_text("class_path: foreign.Data\n")
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump({"data": data}))
    return Path("run")


@pytest.mark.parametrize("kind", FOREIGN)
def test_export_imports_no_class_that_a_run_names(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    assert data_of(run_with(FOREIGN[kind]), []) is None
    assert not Path("executed").exists()
    assert "add --data" in capsys.readouterr().out


def test_export_reads_no_configuration_that_a_run_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    run = run_with("hsakd_pl.yaml")
    with pytest.raises(UsageError, match=r"the data of run/config.yaml: class not found"):
        data_of(run, [])
    assert not Path("executed").exists()


@pytest.mark.parametrize("options", [["--data", "foreign.Data"], ["--data=foreign.Data"]])
def test_export_imports_a_class_that_the_user_names(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    data = data_of(run_with({"class_path": "foreign.Data", "init_args": {"batch_size": 7}}), options)
    assert isinstance(data, DigitsDataModule) and data.batch_size == 7


def test_export_imports_an_option_that_the_user_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "foreign", raising=False)
    run = run_with({"class_path": PICTURES, "init_args": {"root": "a.b", "augmentation": "foreign.Transform"}})
    assert data_of(run, ["--data.init_args.augmentation", "foreign.Transform"]) is not None
    assert Path("executed").exists()


def test_export_uses_the_data_of_the_package_that_a_run_names() -> None:
    data = data_of(run_with({"class_path": DIGITS, "init_args": {"batch_size": 7}}), [])
    assert isinstance(data, DigitsDataModule) and data.batch_size == 7
