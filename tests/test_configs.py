"""Test every configuration: its numbers are the recipe's, its paths exist, and it runs."""

import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
import yaml
from small import error_of

from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.cli.main import main
from hsakd_pl.commands.recipes import files
from hsakd_pl.data import ImageDataModule
from hsakd_pl.recipes import PAIRS, PEERS, SMALL_LR_NETWORKS
from hsakd_pl.recipes import RECIPES as TABLE

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = {str(path.relative_to(ROOT).with_suffix("")): path for path in sorted(ROOT.glob("*/*.yaml"))}
RECIPES = [name for name in CONFIGS if not name.startswith("trainer/")]
PAPER = [name for name in RECIPES if not name.startswith(("digits/", "images/"))]

# Folder of configs/ -> archive of small data in the same layout (None: the images come with a library), batch size.
DATA: dict[str, tuple[str | None, int]] = {
    "cifar100": ("cifar100-mini.tar.gz", 2),
    "digits": (None, 2),
    "images": ("imagenet-mini.tar.gz", 2),
    "imagenet": ("imagenet-mini.tar.gz", 1),
    "stl10": ("stl10-mini.tar.gz", 2),
    "tinyimagenet": ("tiny-imagenet-mini.tar.gz", 2),
}
# Kind of a configuration -> of those whose results it starts from.
SOURCES = {
    "student_joint": "teacher_joint",
    "student_frozen": "teacher_frozen",
    "student": "teacher",
    "teacher_frozen": "baseline",
    "fewshot": "teacher_joint",
    "ablation": "teacher_joint",
    "kd": "baseline",
    "probe": "student_joint",
}


class Recipe(NamedTuple):
    """Hold the numbers of one row of the paper's recipes."""

    max_epochs: int
    milestones: tuple[int, ...]
    lr: float
    weight_decay: float
    nesterov: bool
    batch_size: int


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect garbage: networks of a hundred million parameters are in reference cycles."""
    yield
    gc.collect()


def recipe_of(name: str, trained: str) -> Recipe:
    folder, kind = name.split("/")
    if folder == "imagenet":
        return Recipe(100, (30, 60, 90), 0.1, 1e-4, False, 256)
    if folder in ("stl10", "tinyimagenet"):
        return Recipe(100, (30, 60, 90), 0.1, 0.0, True, 64)
    if kind.startswith("teacher_frozen"):
        return Recipe(100, (30, 60, 90), 0.05, 5e-4, True, 64)
    return Recipe(240, (150, 180, 210), 0.01 if trained in SMALL_LR_NETWORKS else 0.05, 5e-4, True, 64)


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(CONFIGS[name].read_text())


def model_of(name: str) -> dict[str, Any]:
    return read(name)["model"]["init_args"]


def trained(name: str) -> str:
    arguments = model_of(name)
    return arguments.get("network") or arguments["networks"][0]


def test_config_files_match_recipe_table() -> None:
    found = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.rglob("*.*")}
    assert found == files(), "run: python main.py recipes configs --overwrite"
    assert set(TABLE) == set(RECIPES)


def test_recipes_command_lists_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(RECIPES)
    (line,) = (line for line in lines if line.startswith("cifar100/student_joint_wrn_40_2-wrn_16_2 "))
    assert "78.67 +- 0.20" in line and "wrn_16_2 distilled from the joint wrn_40_2 (HSAKD*)" in line


def test_recipes_command_writes_files_and_overwrites_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["recipes", "mine"])
    written = {str(path.relative_to("mine")): path.read_text() for path in Path("mine").rglob("*.*")}
    assert written == files()
    changed = Path("mine/digits/teacher_joint_resnet20.yaml")
    changed.write_text("# mine\n")
    Path("mine/trainer/gpu.yaml").unlink()
    assert str(changed) in error_of(capsys, lambda: main(["recipes", "mine"]))
    assert changed.read_text() == "# mine\n" and not Path("mine/trainer/gpu.yaml").exists()
    main(["recipes", "mine", "--overwrite"])
    assert changed.read_text() == files()["digits/teacher_joint_resnet20.yaml"]
    assert f"replaced {changed}" in capsys.readouterr().out


def test_every_published_experiment_has_a_config() -> None:
    students = [f"student_{how}_{teacher}-{student}" for how in ("joint", "frozen") for teacher, student in PAIRS]
    teachers = [f"teacher_{how}_{teacher}" for how in ("joint", "frozen") for teacher, _ in PAIRS]
    baselines = [f"baseline_{network}" for pair in PAIRS for network in pair]
    few = [f"fewshot_{percent}_resnet56-resnet20" for percent in (25, 50, 75, 100)]
    wanted = {*students, *teachers, *baselines, *few, *(f"mutual_{peer}-{peer}" for peer in PEERS)}
    assert {f"cifar100/{name}" for name in wanted} <= set(CONFIGS)
    assert {"stl10/probe_mobilenetv2", "tinyimagenet/probe_mobilenetv2"} <= set(CONFIGS)
    imagenet = [f"{kind}_{how}" for kind in ("teacher", "student") for how in ("joint", "frozen")]
    for kind in (*imagenet, "mutual"):
        assert [name for name in CONFIGS if name.startswith(f"imagenet/{kind}_resnet")]


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_short_and_name_their_folder(name: str) -> None:
    assert len(CONFIGS[name].read_text().splitlines()) <= 22
    trainer = read(name)["trainer"]
    assert set(trainer) <= set(inspect.signature(pl.Trainer).parameters)
    assert trainer.get("default_root_dir", f"runs/{name}") == f"runs/{name}"
    assert ("default_root_dir" in trainer) == (name in RECIPES)


@pytest.mark.parametrize("name", PAPER)
def test_config_contents_match_their_names(name: str) -> None:
    model, data = read(name)["model"], read(name)["data"].get("init_args", {})
    arguments = model["init_args"]
    kind, _, rest = name.split("/")[1].partition("_")
    how, _, networks = rest.partition("_") if kind in ("teacher", "student", "fewshot") else ("", "", rest)
    modules = {"baseline": "Baseline", "teacher": "Teacher", "mutual": "Mutual", "probe": "LinearProbe"}
    assert model["class_path"] == f"hsakd_pl.{modules.get(kind, 'Student')}Module"
    named = arguments.get("networks") or [arguments[key] for key in ("teacher", "network") if key in arguments]
    assert networks.endswith("-".join(named))
    assert arguments.get("freeze_backbone", False) == (kind == "teacher" and how == "frozen")
    assert data.get("train_fraction", 1.0) == (int(how) / 100 if kind == "fewshot" else 1.0)
    terms = {key for key in arguments if key.endswith("_weight")}
    assert (terms, "transform_images" in arguments) == {
        "kd": ({"ce_weight", "kd_weight", "joint_kd_weight"}, True),
        "ablation": (terms, False),
    }.get(kind, (set(), False))


@pytest.mark.parametrize("name", RECIPES)
def test_config_weights_come_from_another_config(name: str) -> None:
    for key, network in (("weights", "network"), ("teacher_weights", "teacher")):
        if path := model_of(name).get(key):
            if path.startswith("weights/"):  # a published file that the user provides
                assert name.startswith("imagenet/teacher_frozen")
                continue
            if path == "pretrained":
                assert model_of(name)[network].startswith("timm:")
                continue
            source = path.removeprefix("runs/").removesuffix("/last.ckpt")
            assert source in CONFIGS, f"{path} is no {CONFIGS[name].parent}'s result"
            assert source != name
            assert trained(source) == model_of(name)[network]
            kind = next(wanted for using, wanted in SOURCES.items() if name.split("/")[1].startswith(using))
            assert source.split("/")[1].startswith(kind)


def kind_of(name: str) -> tuple[str, ...]:
    """Return the kind of a recipe: data, method, teacher, and on CIFAR-100 the learning rate."""
    folder, _, experiment = name.partition("/")
    method, _, how = experiment.partition("_")
    how = how.partition("_")[0]
    rate = str(trained(name) in SMALL_LR_NETWORKS) if folder == "cifar100" else ""
    return folder, method, how if how in ("joint", "frozen", "class") else "", rate


IN_CI = {
    name
    for kind, name in {kind_of(name): name for name in reversed(RECIPES)}.items()
    if kind[0] != "imagenet"
    or kind[1] == "student"  # the other modules train on CIFAR-100 here, in a tenth of the time
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in IN_CI else pytest.mark.nightly) for name in RECIPES]
)
def test_every_config_runs_one_batch(
    name: str, unpack: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run one batch of training, validation and test with the recipe's numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["main.py"])
    if "timm:" in trained(name):
        pytest.importorskip("timm", reason="timm is not installed")
    options = [f"--config={CONFIGS[name]}", f"--config={CONFIGS['trainer/cpu']}"]
    options += ["--model.init_args.new_head=false"] if "new_head" in model_of(name) else []
    options += [f"--model.init_args.{key}=random" for key in ("weights", "teacher_weights") if key in model_of(name)]
    archive, batch_size = DATA[name.split("/")[0]]
    options += [f"--data.init_args.batch_size={batch_size}", "--data.init_args.num_workers=0", "--trainer.max_epochs=1"]
    options += [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options += [f"--trainer.{option}=false" for option in quiet]
    if archive is not None:
        (folder,) = unpack(archive).iterdir()
        options += [f"--data.init_args.root={folder}"]
    cli = HSAKDCLI(args=options, run=False)
    cli.trainer.fit(cli.model, cli.datamodule)
    metrics = dict(cli.trainer.callback_metrics)
    assert {"train/loss", "val/acc", "val/loss"} <= set(metrics)
    (tested,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    assert {"test/acc", "test/acc_top5", "test/loss"} <= set(tested)
    assert all(torch.tensor(float(value)).isfinite() for value in (*metrics.values(), *tested.values()))
    if name in PAPER:
        model, config = cli.model, read(name)
        defaults = inspect.signature(ImageDataModule).parameters
        batch_size = config["data"].get("init_args", {}).get("batch_size", defaults["batch_size"].default)
        optimizer = (model.lr, model.weight_decay, model.nesterov)
        found = Recipe(config["trainer"]["max_epochs"], model.milestones, *optimizer, batch_size)
        assert found == recipe_of(name, trained(name))
        assert (model.momentum, model.warmup_epochs) == (0.9, 0)
