"""Test that names which collide and options that have no effect are errors, in every command."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import small
import yaml
from small import error_of

from hsakd_pl.cli.main import main
from hsakd_pl.commands.options import parse_names, parse_seeds
from hsakd_pl.commands.seeds import run_seed
from hsakd_pl.errors import UsageError

HEADER = "method,recipe,class,options,data,resnet14-resnet8"
BASELINE = "alone,digits/baseline_{student},hsakd_pl.BaselineModule,,,-"
TEACHER = "teacher,digits/baseline_{teacher},hsakd_pl.BaselineModule,,,99.0"
KD = "KD,digits/kd_{teacher}-{student},hsakd_pl.methods.KDModule,image_size: 16,,95.25"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def table(*lines: str, header: str = HEADER, name: str = "mine.csv") -> None:
    Path(name).write_text("\n".join([header, *lines, ""]))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [KD, KD.replace("16", "8").replace("KD,", "KD2,")],
            "recipe digits/kd_resnet14-resnet8 has another configuration",
        ),
        ([KD.replace("digits/kd", "classic/kd").replace("image_size: 16", "kd_weight: 1.5")] * 1, ""),
        ([KD, KD.replace("95.25", "95.50")], "has the published number 95.25 elsewhere, not 95.50"),
        ([KD, KD.replace("digits/kd", "digits/own")], "KD on resnet14-resnet8 is the recipe digits/own"),
        ([TEACHER, BASELINE.replace("{student}", "{teacher}").replace(",,,", ",lr: 0.1,,")], "another configuration"),
    ],
    ids=["options", "no collision", "published number", "method", "teacher"],
)
def test_colliding_lines_of_a_table_raise(lines: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    table(*lines)
    if not said:
        main(["bench", "mine.csv", "--list"])
        return
    message = error_of(capsys, lambda: main(["bench", "mine.csv", "--list"]))
    assert message.startswith("mine.csv, line 3") and said in message


@pytest.mark.parametrize(
    "line",
    [
        "KD,classic/kd_{teacher}-{student},hsakd_pl.methods.KDModule,temperature: 9.0,,-",
        "Mine,cifar100/kd_{teacher}-{student},hsakd_pl.methods.KDModule,,,-",
        "alone,classic/baseline_{student},hsakd_pl.BaselineModule,lr: 0.1,,-",
    ],
)
def test_line_that_reuses_a_recipe_of_the_package_raises(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    table(line, header=HEADER.replace("resnet14-resnet8", "wrn_40_2-wrn_16_2"))
    message = error_of(capsys, lambda: main(["bench", "classic", "mine.csv", "--list"]))
    assert message.startswith("mine.csv, line 2, wrn_40_2-wrn_16_2: the recipe ") and "another configuration" in message


def test_same_name_in_two_tables_raises(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, lambda: main(["bench", "classic", "hsakd", "--methods", "KD", "--list"]))
    assert message.startswith("classic and hsakd: KD on ") and "classic/kd_" in message
    table(KD)
    table(KD.replace("digits/kd", "digits/other"), name="other.csv")
    message = error_of(capsys, lambda: main(["bench", "mine.csv", "other.csv", "--list"]))
    assert "KD on resnet14-resnet8 is the recipe digits/other" in message
    table(KD.replace("16", "8"), name="other.csv")
    assert "another configuration" in error_of(capsys, lambda: main(["bench", "mine.csv", "other.csv", "--list"]))


def test_table_with_repeated_column_or_without_lines_raises(capsys: pytest.CaptureFixture[str]) -> None:
    table(KD + ",-", header=HEADER + ",resnet14-resnet8")
    message = error_of(capsys, lambda: main(["bench", "mine.csv", "--list"]))
    assert message.startswith("mine.csv: the column resnet14-resnet8 appears more than once")
    table()
    assert "no line after its header" in error_of(capsys, lambda: main(["bench", "mine.csv", "--list"]))
    table(KD.replace("KD", "(KD)", 1))
    assert "all methods are in parentheses" in error_of(capsys, lambda: main(["bench", "mine.csv", "--list"]))
    table(KD, header=HEADER.rpartition(",")[0])
    message = error_of(capsys, lambda: main(["bench", "mine.csv", "--list"]))
    assert message.startswith("mine.csv, line 2 has")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0,0"], "--seeds: '0,0' names 0 more than once"),
        (["--seeds", "0-2,1"], "--seeds: '0-2,1' names 1 more than once"),
        (["--seeds", "0-3000000000"], "'0-3000000000' has more than 10000 seeds"),
        (["--seeds", "4294967296"], "4294967296 contains no seed from 0 to 4294967295"),
        (["--seeds", "0", "--seeds", "1"], "--seeds is given more than once"),
        (["--methods", "KD,KD"], "--methods: 'KD,KD' names KD more than once"),
        (["--methods", "KD,"], "--methods: 'KD,' has an empty name"),
        (["--pairs", "resnet14-resnet8,resnet14-resnet8"], "resnet14-resnet8 more than once"),
        (["mine.csv"], "tables: mine.csv is named more than once"),
        (["--teachers", "resnet14=a", "resnet14=b"], "teachers: resnet14 is named more than once"),
        (["--teachers", "vgg8=a"], "teachers: no task starts from vgg8; they start from baseline_resnet14, resnet14"),
        (["--teachers", "resnet14=missing.pth"], "the file of resnet14, missing.pth, does not exist"),
        (["--seed_everything", "3"], "--seed_everything has no effect in bench: --seeds decides"),
        (["--trainer.default_root_dir=x"], "--trainer.default_root_dir has no effect in bench: --folder decides"),
        (["--ckpt_path", "last"], "--ckpt_path has no effect in bench"),
        (["--list", "--dry-run"], "--list and --dry-run exclude each other"),
        (["--list", "--seeds", "1"], "--seeds has no effect with --list"),
        (["--list", "--trainer.max_epochs", "1"], "--trainer.max_epochs has no effect with --list"),
        (["--dry-run", "--format", "md"], "--format has no effect with --dry-run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bench_argument_without_effect_raises(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table(TEACHER, KD)
    assert said in error_of(capsys, lambda: main(["bench", "mine.csv", *arguments]))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "--seeds", "1,1"], "--seeds: '1,1' names 1 more than once"),
        (["sweep", "--seeds", "1", "--seed_everything=2"], "--seed_everything has no effect in sweep: --seeds decides"),
        (["sweep", "--seeds", "1", "--ckpt_path", "last"], "--ckpt_path has no effect in sweep"),
        (["recipes", "--overwrite"], "--overwrite has no effect without a folder"),
        (["report", "runs", "--format", "md", "--format", "csv"], "--format is given more than once"),
        (["export", "x.ckpt", "--checkpoint", "best"], "checkpoint best has no effect"),
        (["export", "x", "--formats", "safetensors", "--input", "uint8"], "input uint8 has no effect on safetensors"),
        (["export", "x", "--formats", "onnx", "onnx"], "formats: onnx is named more than once"),
        (["predict", "x", "y", "--top", "3", "--top=4"], "--top is given more than once"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_option_without_effect_raises(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in error_of(capsys, lambda: main(arguments))


def test_names_and_seeds_are_parsed() -> None:
    assert parse_seeds("0-2,7") == [0, 1, 2, 7] and parse_names("KD, DKD") == ["KD", "DKD"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a sweep with one seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        patch.setattr(sys, "argv", ["main.py"])
        options = {"trainer": {"limit_val_batches": 1, "limit_test_batches": 1, "default_root_dir": "run"}}
        small.run("sweep", "--seeds", "0", **options)
        return Path().absolute()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.init_args.lr=0.5", "model.init_args.lr 0.01, not 0.5"),
        ("--trainer.max_epochs=3", "trainer.max_epochs 1, not 3"),
        ("--data.init_args.batch_size=32", "data.init_args.batch_size 64, not 32"),
        ("--model=hsakd_pl.TeacherModule", "model.class_path hsakd_pl.BaselineModule, not hsakd_pl.TeacherModule"),
        ("--optimizer=torch.optim.AdamW", "optimizer.class_path None, not torch.optim.AdamW"),
        (
            '--trainer.callbacks={"class_path": "pytorch_lightning.callbacks.LambdaCallback"}',
            "trainer.callbacks None, not",
        ),
        ("--model.init_args.weights=random", "weights_sha256 None, not random"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_finished_seed_with_other_options_raises(
    finished: Path, option: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    with pytest.raises(UsageError) as error:
        run_seed(0, ["--config", "config.yaml", option], Path("run"))
    assert said in str(error.value)
    assert str(error.value).startswith("run/seed0 has the result of other options")


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.init_args.num_workers=1"],
        ["--trainer.accelerator=auto"],
        ["--save_every_minutes=3"],
        ['--trainer.callbacks={"class_path": "pytorch_lightning.callbacks.RichProgressBar"}'],
    ],
    ids=" ".join,
)
def test_finished_seed_with_the_same_result_is_skipped(
    finished: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    run_seed(0, ["--config", "config.yaml", *options], Path("run"))
    assert "seed 0 has a result" in capsys.readouterr().out


FOREIGN: list[dict[str, Any]] = [
    {"data": {"class_path": "foreign.Data"}},
    {"model": {"class_path": "foreign.Module"}},
    {"trainer": {"callbacks": [{"class_path": "foreign.Callback"}]}},
]


@pytest.mark.parametrize("content", FOREIGN, ids=lambda content: next(iter(content)))
def test_finished_seed_is_tested_without_its_configuration(
    content: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.syspath_prepend(".")
    Path("foreign.py").write_text("open('executed', 'a').close()\n")
    Path("run/seed0/config.yaml").write_text(yaml.safe_dump(content))
    Path("run/seed0/test.json").unlink()
    run_seed(0, ["--config", "config.yaml"], Path("run"))
    assert Path("run/seed0/test.json").exists() and not Path("executed").exists()


def test_finished_task_of_a_bench_with_other_options_raises(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    table(BASELINE)
    folder = Path("runs/digits/baseline_resnet8/seed0")
    folder.mkdir(parents=True)
    content: dict[str, Any] = json.loads(Path("run/seed0/result.json").read_text())
    (folder / "result.json").write_text(json.dumps(content))
    for options in ([], ["--task", "0"], ["--dry-run"]):
        message = error_of(capsys, lambda options=options: main(["bench", "mine.csv", *options]))
        assert message.startswith("runs/digits/baseline_resnet8/seed0 has the result of other options")
