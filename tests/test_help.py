"""What --help shows is what there is: all of it, in two screens, and in a moment."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from small import error_of

from hsakd_pl import list_networks
from hsakd_pl.cli.commands import COMMANDS, PICTURES, make_parser, parser_of
from hsakd_pl.cli.help import DEFAULTS, OWN, TRAINER, USED, classes, help_for
from hsakd_pl.cli.main import main
from hsakd_pl.cli.signatures import networks, options, sentences_of
from hsakd_pl.errors import did_you_mean

ROOT = Path(__file__).resolve().parents[1]
STUDENT = "configs/cifar100/student_joint_wrn_40_2-wrn_16_2.yaml"
CLASSES = [*classes("model").values(), *classes("data").values()]
LIGHTNING = [name for name, command in COMMANDS.items() if not command.module]
BESIDE = [*((name, command.module) for name, command in COMMANDS.items() if command.module), ("predict", PICTURES)]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of the usual width, in the repository's folder."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(ROOT)


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def on_a_command_line(value: Any) -> str | None:
    """A default, as it would be typed."""
    if value is inspect.Parameter.empty:
        return None
    if isinstance(value, bool | None):
        return "" if value is None else str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def shown(args: list[str]) -> str:
    text = help_for(args)
    assert text is not None
    return text


@pytest.mark.parametrize("path", [*CLASSES, TRAINER])
def test_options_read_from_source_equal_signatures(path: str) -> None:
    found = inspect.signature(load(path)).parameters
    assert {name: option.default for name, option in options(path).items()} == {
        name: on_a_command_line(each.default) for name, each in found.items()
    }


@pytest.mark.parametrize("path", CLASSES)
def test_every_option_has_its_own_description(path: str) -> None:
    """One whose default a class changes is not described by the base, which may tell where its own comes from."""
    assert [name for name, option in options(path).items() if not option.sentence] == []
    for base in load(path).__mro__[1:]:
        before = inspect.signature(base).parameters if base.__name__.endswith("Module") else {}
        for name, each in inspect.signature(load(path)).parameters.items():
            if (
                name in before
                and before[name].default != each.default
                and "of the paper" in options(path)[name].sentence
            ):
                assert name in sentences_of(path), name


def test_help_lists_registered_networks() -> None:
    assert networks() == [name for name in list_networks() if "." not in name]


@pytest.mark.parametrize(("name", "module"), BESIDE)
def test_other_commands_accept_options_shown_in_help(name: str, module: str) -> None:
    class Complete(Exception):  # noqa: N818 it is no error
        pass

    def parse(*_: Any, **__: Any) -> None:
        raise Complete

    parser: ArgumentParser = make_parser(name, module)
    parser.parse_args = parser.parse_known_args = parser.parse_known_intermixed_args = parse  # type: ignore[assignment, method-assign]
    with pytest.raises(Complete):
        import_module(module).command(parser, ["classic"])
    assert parser_of(name, module).format_help() == parser.format_help()


@pytest.mark.parametrize("args", [[name, "--help"] for name in LIGHTNING])
def test_command_help_fits_two_screens(args: list[str]) -> None:
    lines = shown(args).splitlines()
    assert len(lines) <= 100 and max(len(line) for line in lines if " " in line.strip()) <= 100
    assert [name for name in list_networks() if "." not in name and name not in " ".join(lines)] == []
    assert "torch.nn" not in "".join(lines)


@pytest.mark.parametrize("path", CLASSES)
def test_class_help_fits_two_screens(path: str) -> None:
    name = path.rpartition(".")[2]
    group = "data" if "Data" in name else "model"
    text = shown(["fit", f"--{group}.help", name])
    assert len(text.splitlines()) <= 100
    assert text == shown(["fit", f"--{group}.help={path}"])
    assert all(f"--{group}.{option}" in text for option in inspect.signature(load(path)).parameters)


def test_front_page_has_an_example_per_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert all(
        f"\n  {name} " in text and f" hsakd {name} {command.example}\n" in text for name, command in COMMANDS.items()
    )
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and capsys.readouterr().out == text


def test_help_examples_name_existing_files() -> None:
    files = {word for command in COMMANDS.values() for word in command.example.split() if word.startswith("configs/")}
    assert files and all((ROOT / file).is_file() for file in files)
    text = next(iter(files)) and (ROOT / next(iter(files))).read_text()
    assert all(word in text for command in COMMANDS.values() for word in command.example.split() if "runs/" in word)


def test_help_shows_values_set_on_command_line() -> None:
    text = shown(["fit", "--config", STUDENT, "--model.lr", "0.3", "--model.init_args.kd_weight=2", "--help"])
    assert all(f"  --{each}" in text for each in ("model.lr 0.3 ", "model.kd_weight 2 ", "model.network wrn_16_2 "))
    assert (
        "--trainer.max_epochs 240 " in text and "--model hsakd_pl.StudentModule:" in text and "(required)" not in text
    )
    later = shown(["fit", "-c", STUDENT, "--config=configs/trainer/gpu.yaml", "--model", "TeacherModule", "-h"])
    assert "--trainer.precision bf16-mixed" in later and "--model hsakd_pl.TeacherModule:" in later


def test_help_shows_effective_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = ["--model", "DKDModule", "--model.network", "resnet8"], ["--data", "DigitsDataModule"]
    teacher = ["--model.teacher", "resnet8", "--model.teacher_weights", "random"]
    with pytest.raises(SystemExit):
        main(["fit", *model, *teacher, *data, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    for name, option in OWN.items():
        if name not in ("config", "print_config"):
            assert on_a_command_line(config[name]) == option.default
    stated = {name: option.default for name, option in options(TRAINER).items()} | {"enable_model_summary": "false"}
    assert {name: on_a_command_line(value) for name, value in config["trainer"].items()} == stated
    assert USED.keys() <= config["trainer"].keys() and DEFAULTS.keys() <= config["trainer"].keys()
    for group in ("model", "data"):
        taken = options(config[group]["class_path"])
        given = {"network": "resnet8", "teacher": "resnet8", "teacher_weights": "random"}
        expected = {name: given.get(name, option.default) for name, option in taken.items() if name != "num_classes"}
        found = config[group]["init_args"]
        assert {name: on_a_command_line(found[name]) for name in expected} == expected


def test_help_does_not_import_pytorch_or_lightning() -> None:
    asked = [["--help"], ["fit", "--help"], ["fit", "--model.help", "StudentModule"], ["fit", "--trainer.help"]]
    asked += [["fit", "--config", STUDENT, "--help"], ["predict", "run", "photos", "--help"]]
    asked += [[name, "--help"] for name, _ in BESIDE]
    program = f"""
import sys
from hsakd_pl.cli.main import main
for args in {asked}:
    try:
        main(args)
    except SystemExit as end:
        assert end.code == 0, args
large = {{"torch", "pytorch_lightning", "torchvision", "scipy", "sklearn", "matplotlib", "rich", "numpy"}}
assert not large & set(sys.modules), large & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)


MINE = """
from hsakd_pl import StudentModule, methods
from hsakd_pl.networks.resnet import CIFARResNet

class Net(CIFARResNet):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, depth=8)

class Mine(methods.DKDModule):
    '''Minimises what I like.

    Args:
        alpha: of mine.
    '''

    def __init__(self, network: str, teacher: str, alpha: float = 7.0, **rest) -> None:
        super().__init__(network, teacher, alpha, beta=2.0, **rest)
"""


def test_module_in_working_folder_is_found(tmp_path: Path) -> None:
    """By the installed command, whose own folder is another one."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "hsakd"
    command.write_text("from hsakd_pl.cli.main import main\nmain()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def hsakd(*args: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, str(command), *args]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    text = hsakd("fit", "--model.help", "mine.Mine").stdout
    assert "what I like" in text and "--model.alpha 7.0               of mine." in text
    assert "--model.beta" not in text and "--model.dkd_weight 1.0" in text and "--model.lr 0.05" in text
    trial = ["--data", "DigitsDataModule", "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    networks = ["--model.network", "mine.Net", "--model.teacher", "resnet8", "--model.teacher_weights", "random"]
    done = hsakd("fit", "--model", "mine.Mine", *networks, *trial, "--data.num_workers", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    wrong = hsakd("fit", "--model", "mime.Mine", *trial)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1] == (
        "error: mime.Mine: there is no module mime in the working folder, PYTHONPATH and the environment: "
        "did you mean mine?"
    )


def test_did_you_mean_suggests_close_names() -> None:
    names = ["StudentModule", "TeacherModule", "MutualModule"]
    assert did_you_mean("StudentModul", names) == "did you mean StudentModule? "
    assert did_you_mean("resnet9", ["resnet8", "vgg8"], "timm:") == "did you mean timm:resnet8? "
    assert did_you_mean("quite else", names) == ""


MEANT = {
    "fitt": (["fitt"], "there is no command fitt: did you mean fit"),
    "class": (
        ["fit", "--model", "StudentModul"],
        "model: StudentModul is no class that is known: did you mean StudentMod",
    ),
    "class path": (["fit", "--model", "hsakd_pl.StudentModul"], "did you mean hsakd_pl.StudentModule?"),
    "method": (["fit", "--model", "hsakd_pl.methods.DKDModul"], "did you mean hsakd_pl.methods.DKDModule"),
    "package": (["fit", "--model", "hsakd_pl.method.DKDModule"], "did you mean hsakd_pl.methods?"),
    "data": (["fit", "--model", "BaselineModule", "--data", "CIFAR10DataModule"], "did you mean CIFAR100DataModule"),
    "option": (
        ["fit", "--model", "BaselineModule", "--model.netwrk", "resnet8"],
        "did you mean network? 'fit --model.help",
    ),
    "optimizer": (
        ["fit", "--model", "BaselineModule", "--model.network", "resnet8", "--model.optimizer", "torch.optim.AdmW"],
        "torch.optim.AdmW does not exist: did you mean torch.optim.AdamW",
    ),
    "help": (["fit", "--model.help", "StudentModul"], "did you mean StudentModule"),
    "missing": (
        ["fit"],
        "data and model missing: name a configuration by --config FILE, or --data CLASS and --model CLASS",
    ),
    "key": (["fit", "--config", "key.yaml"], "there is no option trainer.max_epoch: did you mean trainer.max_epochs"),
    "head": (["fit", "--config", "head.yaml"], "there is no option modle.network: did you mean model?"),
    "callback": (["fit", "--config", "callback.yaml"], "did you mean pytorch_lightning.callbacks.EarlyStopping?"),
    "its option": (["fit", "--config", "inner.yaml"], "EarlyStopping has no option 'monitr': did you mean monitor?"),
    "type": (["fit", "--config", "type.yaml"], "model.lr is fast: it must be float"),
}


@pytest.mark.parametrize("mistake", MEANT)
def test_unknown_option_or_class_gets_a_suggestion(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"class_path": "hsakd_pl.BaselineModule", "init_args": {"network": "resnet8"}}
    config: dict[str, Any] = {"model": model, "data": {"class_path": "hsakd_pl.DigitsDataModule"}}
    stopping = "pytorch_lightning.callbacks.EarlyStopping"
    changes: dict[str, dict[str, Any]] = {
        "key": {"trainer": {"max_epoch": 3}},
        "head": {"modle": model},
        "callback": {"trainer": {"callbacks": [{"class_path": stopping.replace("pp", "p")}]}},
        "inner": {"trainer": {"callbacks": [{"class_path": stopping, "init_args": {"monitr": "val/acc"}}]}},
        "type": {"model": {**model, "init_args": {"network": "resnet8", "lr": "fast"}}},
    }
    for name, change in changes.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(config | change))
    args, words = MEANT[mistake]
    message = error_of(capsys, lambda: main(args))
    assert words in message
    assert "\n" not in message and len(message) < 500


def test_shell_completion_completes_options() -> None:
    pytest.importorskip("shtab")
    if (bash := shutil.which("bash")) is None:
        pytest.skip("needs bash")
    words = [sys.executable, "-m", "shtab", "--shell=bash", "--prog", "hsakd", "hsakd_pl.cli.completion.parser"]
    script = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    [function] = re.findall(r"^complete .* -F (\w+) hsakd$", script, re.MULTILINE)

    def completed(*line: str) -> list[str]:
        asked = f"COMP_WORDS=({' '.join(map(repr, line))}); COMP_CWORD={len(line) - 1}; "
        asked += f"{function} hsakd {line[-1]!r} {line[-2]!r}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        return subprocess.run([bash, "-c", f"{script}\n{asked}"], capture_output=True, text=True).stdout.split()

    assert completed("hsakd", "re") == ["recipes", "report"]
    assert completed("hsakd", "fit", "--model.temp") == ["--model.temperature"]
    assert completed("hsakd", "fit", "--model", "Stu") == ["StudentModule"]
    assert completed("hsakd", "sweep", "--model.network", "wrn_16") == ["wrn_16_1", "wrn_16_2"]
    assert completed("hsakd", "report", "--fo") == ["--format"]
    assert "setup.cfg" in completed("hsakd", "fit", "--config", "setup")
