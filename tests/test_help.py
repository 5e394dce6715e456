"""The help of the program, of commands and of classes, suggestions for mistyped names, and shell completion."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import programs
import pytest
import yaml
from small import error_of

import hsakd_pl
from hsakd_pl import list_networks
from hsakd_pl.cli.commands import COMMANDS
from hsakd_pl.cli.help import classes
from hsakd_pl.cli.main import main
from hsakd_pl.cli.parser import Parser
from hsakd_pl.errors import did_you_mean

ROOT = Path(__file__).resolve().parents[1]
LIGHT = [name for name, command in COMMANDS.items() if command.module]
CLASSES = [(group, name) for group in ("model", "data") for name in classes(group)]


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of the usual width, in the repository's folder."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(ROOT)


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return what a command line prints before it ends with status 0."""
    with pytest.raises(SystemExit) as end:
        main([*args])
    assert end.value.code == 0
    return capsys.readouterr().out


def class_options(group: str, name: str) -> list[Any]:
    """Return the options of a class of the package, as jsonargparse finds them."""
    parser = Parser()
    parser.add_class_arguments(classes(group)[name], group)
    return [action for action in parser._actions if re.fullmatch(rf"{group}\.\w+", action.dest)]


def test_front_page_has_an_example_per_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in text and f" hsakd {name} {command.example}\n" in text
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and capsys.readouterr().out == text


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"hsakd_pl {hsakd_pl.__version__}\n"


def test_help_examples_name_existing_files() -> None:
    words = [word for command in COMMANDS.values() for word in command.example.split()]
    files = {word for word in words if word.startswith("configs/")}
    assert files and all((ROOT / file).is_file() for file in files)
    text = "".join((ROOT / file).read_text() for file in files)
    assert all(word in text for word in words if word.startswith("runs/digits/"))


def test_help_of_light_commands_does_not_import_pytorch() -> None:
    program = f"""
import sys
from hsakd_pl.cli.main import main
for args in {[["--help"], *([name, "--help"] for name in LIGHT)]}:
    try:
        main(args)
    except SystemExit as end:
        assert end.code == 0, args
large = {{"torch", "pytorch_lightning", "torchvision", "scipy", "sklearn", "matplotlib", "rich", "numpy"}}
assert not large & set(sys.modules), large & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)


def test_tables_of_results_do_not_import_pytorch(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    row = {"config": ["a/one.yaml"], "images_per_second": 100.0, "seconds": 10.0}
    (tmp_path / "run" / "result.json").write_text(json.dumps(row | {"last_val_acc": 0.7, "best_val_acc": 0.9}))
    page = str(tmp_path / "page.html")
    program = f"""
import sys
from hsakd_pl.cli.main import main
for args in [["recipes"], ["bench", "classic", "--list"], ["report", {str(tmp_path)!r}, "--html", {page!r}]]:
    main(args)
large = {{"torch", "pytorch_lightning", "torchvision", "scipy", "sklearn", "matplotlib"}}
assert not large & set(sys.modules), large & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize("name", LIGHT)
def test_help_of_light_commands_has_a_usage_and_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, name, "--help")
    assert text.startswith(f"usage: hsakd {name} ")
    assert f"Example: hsakd {name} {COMMANDS[name].example}" in " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize("name", ["fit", "validate", "test"])
def test_help_of_fit_shows_own_options_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, name, "--help")
    lines = text.splitlines()
    assert text.startswith(COMMANDS[name].summary) and "usage:" not in text
    places = [lines.index(title) for title in ("Options:", "Model:", "Data:", "Lightning's trainer:")]
    assert places == sorted(places)
    assert "  --trainer.accumulate_grad_batches ACCUMULATE_GRAD_BATCHES" in lines
    assert "torch.nn" not in text and "known subclasses" not in text
    assert all(network in text for network in list_networks() if "." not in network)
    assert all(class_name in text for _, class_name in CLASSES)
    assert max(len(line) for line in lines) <= 80


@pytest.mark.parametrize(("group", "name"), CLASSES)
def test_class_help_shows_every_option_with_type_and_default(
    group: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, "fit", f"--{group}.help", name)
    assert "usage:" not in text and "known subclasses" not in text
    options = class_options(group, name)
    assert options
    for option in options:
        [entry] = re.findall(rf"^  --{re.escape(option.dest)} .*(?:\n {{3,}}.*)*", text, re.MULTILINE)
        entry = " ".join(entry.split())
        assert "type: " in entry and ("required" in entry or "default: " in entry), entry


@pytest.mark.parametrize(("group", "name"), CLASSES)
def test_every_option_of_a_class_is_described(group: str, name: str) -> None:
    described = str(classes(group)[name].__doc__)
    missing = [option.dest for option in class_options(group, name) if not option.help]
    assert [dest for dest in missing if f"``{dest.partition('.')[2]}``" not in described] == []


MINE = '''
import hsakd_pl
from hsakd_pl import StudentModule, methods
from hsakd_pl.networks.resnet import CIFARResNet


class Net(CIFARResNet):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, depth=8)


class Mine(methods.DKDModule):
    """Minimise what I like.

    Args:
        alpha: of mine.
    """

    def __init__(self, network: str, teacher: str, alpha: float = 7.0, **rest) -> None:
        super().__init__(network, teacher, alpha, beta=2.0, **rest)


class Weighted(StudentModule):
    """Add a term.

    Parameters
    ----------
    my_weight : float
        Weight of my term.
    """

    def __init__(self, *args, my_weight: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.my_weight = my_weight


class Broken(StudentModule):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        open("lables.txt")
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a user's module in the working folder."""
    (tmp_path / "mine_of_help.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "mine_of_help"


def test_help_of_a_user_class_shows_inherited_options(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "fit", "--model.help", f"{mine}.Mine")
    assert "Minimise what I like" in text
    assert "  --model.alpha ALPHA   of mine. (type: float, default: 7.0)" in text
    assert "--model.beta" not in text and "--model.dkd_weight" in text and "--model.lr" in text


def test_help_of_a_user_class_with_star_arguments(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "fit", "--model.help", f"{mine}.Weighted").split())
    assert re.search(r"--model\.network NETWORK [^-]*\(required, type: str \| Module\)", text)
    assert re.search(r"--model\.teacher TEACHER [^-]*\(required, type: str \| Module\)", text)
    assert "--model.my_weight MY_WEIGHT Weight of my term. (type: float, default: 1.0)" in text
    assert "--model.kd_weight" in text and "--model.lr" in text


def test_module_in_working_folder_is_found(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    trial = ["--data", "DigitsDataModule", "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    networks = ["--model.network", f"{mine}.Net", "--model.teacher", "resnet8", "--model.teacher_weights", "random"]
    main(["fit", "--model", f"{mine}.Mine", *networks, *trial, "--data.num_workers", "0"])
    message = error_of(capsys, lambda: main(["fit", "--model", "mime_of_help.Mine", *trial]))
    assert message == (
        "model: mime_of_help.Mine: there is no module mime_of_help in the working folder, PYTHONPATH and the "
        "environment: did you mean mine_of_help?"
    )


def test_working_folder_is_searched_by_the_installed_command(mine: str, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "hsakd"
    command.parent.mkdir()
    command.write_text(f"import sys\nsys.path.append({str(ROOT)!r})\nfrom hsakd_pl.cli.main import main\nmain()\n")
    words = [sys.executable, str(command), "fit", "--model.help", f"{mine}.Mine"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "Minimise what I like" in done.stdout, done.stderr


def test_did_you_mean_suggests_close_names() -> None:
    names = ["StudentModule", "TeacherModule", "MutualModule"]
    assert did_you_mean("StudentModul", names) == "did you mean StudentModule? "
    assert did_you_mean("resnet9", ["resnet8", "vgg8"], "timm:") == "did you mean timm:resnet8? "
    assert did_you_mean("quite else", names) == ""


MODEL = ["--model", "BaselineModule"]
DATA = ["--data", "DigitsDataModule"]
NETWORK = ["--model.network", "resnet8"]
MEANT = {
    "fitt": (["fitt"], "there is no command fitt: did you mean fit? 'hsakd --help' lists them"),
    "recipe of the package": (
        ["fit", "--config", "somewhere/cifar100/baseline_resnet20.yaml"],
        "somewhere/cifar100/baseline_resnet20.yaml is missing: 'hsakd recipes configs' writes all configurations",
    ),
    "settings of the package": (
        ["sweep", "--seeds", "0", "--config", "configs/trainer/gpu.yaml"],
        "configs/trainer/gpu.yaml is missing: 'hsakd recipes configs' writes all configurations",
    ),
    "misspelt recipe of the package": (
        ["fit", "--config", "configs/images/teachr.yaml"],
        "configs/images/teachr.yaml is missing: did you mean images/teacher.yaml? 'hsakd recipes configs' writes all",
    ),
    "class": (
        ["fit", "--model", "StudentModul"],
        "model: StudentModul is not a known class: did you mean StudentModule?",
    ),
    "class path": (
        ["fit", "--model", "hsakd_pl.StudentModul"],
        "model: hsakd_pl.StudentModul does not exist: did you mean hsakd_pl.StudentModule?",
    ),
    "method": (
        ["fit", "--model", "hsakd_pl.methods.DKDModul"],
        "model: hsakd_pl.methods.DKDModul does not exist: did you mean hsakd_pl.methods.DKDModule",
    ),
    "package": (
        ["fit", "--model", "hsakd_pl.method.DKDModule"],
        "model: hsakd_pl.method.DKDModule: there is no module hsakd_pl.method in hsakd_pl: "
        "did you mean hsakd_pl.methods?",
    ),
    "data": (
        ["fit", *MODEL, *NETWORK, "--data", "CIFAR10DataModule"],
        "data: CIFAR10DataModule is not a known class: did you mean CIFAR100DataModule",
    ),
    "option": (
        ["fit", *MODEL, "--model.netwrk", "resnet8"],
        "there is no option model.netwrk: did you mean model.network? "
        "'hsakd fit --model.help BaselineModule' lists the options of BaselineModule",
    ),
    "option of the trainer": (
        ["fit", *MODEL, *NETWORK, *DATA, "--trainer.max_epoch", "x"],
        "there is no option trainer.max_epoch: did you mean trainer.max_epochs",
    ),
    "option of the command": (
        ["fit", *MODEL, *NETWORK, *DATA, "--ckpt_pat", "last"],
        "there is no option ckpt_pat: did you mean ckpt_path? 'hsakd fit --help' lists the options",
    ),
    "optimizer": (
        ["fit", *MODEL, *NETWORK, "--model.optimizer", "torch.optim.AdmW"],
        "model.optimizer: torch.optim.AdmW does not exist: did you mean torch.optim.AdamW",
    ),
    "help": (
        ["fit", "--model.help", "StudentModul"],
        "model: StudentModul is not a known class: did you mean StudentModule?",
    ),
    "neither": (
        ["fit"],
        "data and model missing: name a configuration with --config FILE, or use --data CLASS and --model CLASS",
    ),
    "network": (
        ["fit", *MODEL, *DATA],
        "model.network is missing: BaselineModule needs it; set --model.network",
    ),
    "teacher": (
        ["fit", "--model", "StudentModule", *NETWORK, *DATA],
        "model.teacher is missing: StudentModule needs it; set --model.teacher",
    ),
    "accelerator": (
        ["fit", *MODEL, *NETWORK, *DATA, "--trainer.accelerator", "gpuu"],
        "trainer.accelerator: gpuu is not an accelerator: did you mean gpu? available are auto, cpu, cuda, gpu, mps, ",
    ),
    "strategy": (
        ["fit", *MODEL, *NETWORK, *DATA, "--trainer.strategy", "dpp"],
        "trainer.strategy: dpp is not a strategy: did you mean ddp",
    ),
    "epochs": (
        ["fit", *MODEL, *NETWORK, *DATA, "--trainer.max_epochs", "abc"],
        "trainer.max_epochs: abc is not valid; expected Optional[int]",
    ),
    "key": (
        ["fit", "--config", "key.yaml"],
        "there is no option trainer.max_epoch: did you mean trainer.max_epochs",
    ),
    "head": (["fit", "--config", "head.yaml"], "there is no option modle: did you mean model?"),
    "callback": (
        ["fit", "--config", "callback.yaml"],
        "trainer.callbacks: pytorch_lightning.callbacks.EarlyStoping does not exist: "
        "did you mean pytorch_lightning.callbacks.EarlyStopping?",
    ),
    "its option": (
        ["fit", "--config", "inner.yaml"],
        "there is no option trainer.callbacks.monitr: did you mean trainer.callbacks.monitor? EarlyStopping has ",
    ),
    "type": (["fit", "--config", "type.yaml"], "model.lr: fast is not valid; expected float"),
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
    assert message.startswith(words)
    assert "\n" not in message and len(message) < 500


def test_shell_completion_completes_options() -> None:
    shtab = pytest.importorskip("shtab.main").main
    if (bash := shutil.which("bash")) is None:
        pytest.skip("needs bash")
    script = programs.run(shtab, "--shell=bash", "--prog", "hsakd", "hsakd_pl.cli.completion.parser").stdout

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
