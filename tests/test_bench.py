"""Test the bench: its tables, their configurations, and runs on the digits."""

import csv
import inspect
import json
import re
import sys
from io import StringIO
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import pytest
import small
import yaml
from jsonargparse import Namespace
from methods import METHODS, make_method
from programs import hsakd
from small import Asked, error_of

import hsakd_pl
from hsakd_pl import list_networks
from hsakd_pl.cli.main import main
from hsakd_pl.commands.bench.cells import select_cells
from hsakd_pl.commands.bench.tasks import Bench, Task
from hsakd_pl.commands.estimate import MEASURED_STEPS, WARMUP_STEPS
from hsakd_pl.commands.seeds import ParsedFit
from hsakd_pl.files.escaping import for_markdown
from hsakd_pl.files.weights import file_sha256
from hsakd_pl.recipes import ALL_RECIPES, BENCH_TABLES, PAIRS, RECIPES, read_table
from hsakd_pl.recipes.bench import COLUMNS, MARKS, OPTIONAL_COLUMNS
from hsakd_pl.report.differences import expected
from hsakd_pl.report.matrix import PROTOCOLS_CAPTION, matrix
from hsakd_pl.report.table import COSTS_CAPTION

BENCHED = [name for name in ALL_RECIPES if name not in RECIPES]
CLASSIC = read_table(BENCH_TABLES["classic"]).cells
SMALL = read_table(BENCH_TABLES["small"]).recipes
FULL = ("classic", "views", "nesterov")  # folders of the recipes that those of `small` shorten
SCHEDULES = {"milestones", "weight_warmup_epochs", "ramp_epochs", "decay_start", "decay_epochs"}
MINE = """method,recipe,class,options,data,resnet14-resnet8
teacher,digits/baseline_{teacher},hsakd_pl.BaselineModule,,,99.0
KD,digits/kd_{teacher}-{student},hsakd_pl.methods.KDModule,image_size: 16,,95.25
SP,digits/sp_{teacher}-{student},hsakd_pl.methods.SimilarityModule,image_size: 16,,-; sp_weight: 100.0
"""
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.accelerator=cpu"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a user's table into an empty working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.csv"
    path.write_text(MINE)
    return path


def options_of(name: str) -> dict[str, Any]:
    return dict(ALL_RECIPES[name].model["init_args"])


def test_bench_tables_contain_published_pairs_and_methods() -> None:
    pairs = {cell.pair for cell in CLASSIC}
    assert len(pairs) == 12 and {net for pair in pairs for net in pair.split("-")} <= {
        *list_networks(),
        "mobilenetv2_stride2",
    }
    methods = [
        "KD",
        "FitNet",
        "AT",
        "SP",
        "CC",
        "VID",
        "RKD",
        "PKT",
        "CRD",
        "ReviewKD",
        "DKD",
        "DIST",
        "KD+LS",
        "DML",
        "HSAKD",
        "HSAKD*",
    ]
    assert {(method, pair) for method in methods for pair in pairs} <= {(cell.method, cell.pair) for cell in CLASSIC}
    assert {tuple(cell.pair.split("-")) for cell in read_table(BENCH_TABLES["hsakd"]).cells} == set(PAIRS)


@pytest.mark.parametrize(
    ("table", "method", "pair", "number"),
    [
        ("classic", "DKD", "resnet56-resnet20", "71.97"),
        ("classic", "alone", "vgg13-mobilenetv2_stride2", "64.60"),
        ("classic", "teacher", "resnet110-resnet32", "74.31"),
        ("classic", "KD+LS", "resnet50-vgg8", ""),
        ("hsakd", "HSAKD*", "wrn_40_2-wrn_16_2", "78.67 +- 0.20"),
        ("hsakd", "CRD", "vgg13-mobilenetv2", "76.13"),
        ("few-shot", "SSKD at 25 %", "resnet56-resnet20", "67.82"),
        ("few-shot", "HSAKD* at 50 %", "resnet56-resnet20", "72.18 +- 0.41"),
        ("transfer", "CC on TinyImageNet", "vgg13-mobilenetv2", "36.43"),
        ("transfer", "HSAKD* on STL-10", "vgg13-mobilenetv2", "74.66"),
        ("mutual", "HSAKD (mutual)", "vgg13-vgg13", "80.44 +- 0.05"),
        ("newer", "TTM", "vgg13-vgg8", "74.33"),
        ("newer", "RLD", "resnet32x4-resnet8x4", "76.64 second-hand"),
        ("newer", "SD-KD", "vgg13-vgg8", "73.47 logged"),
        ("newer", "CAT-KD", "wrn_40_2-wrn_16_2", "75.60 ?"),
        ("newer", "NormKD", "wrn_40_2-wrn_16_2", ""),
        ("newer", "SRRL", "resnet32x4-resnet8x4", "75.39"),
        ("views", "MLKD", "resnet32x4-resnet8x4", "77.08 second-hand"),
        ("views", "MLKD (960 epochs)", "resnet32x4-shufflenetv2", "78.44 second-hand"),
        ("views", "CRLD", "resnet32x4-resnet8x4", ""),
        ("other-protocols", "WKD-L+F", "wrn_40_2-shufflenetv1", "77.50"),
        ("other-protocols", "SimKD", "resnet32x4-resnet8x4", "78.08"),
    ],
)
def test_bench_cells_hold_published_numbers(table: str, method: str, pair: str, number: str) -> None:
    (cell,) = (cell for cell in read_table(BENCH_TABLES[table]).cells if (cell.method, cell.pair) == (method, pair))
    assert cell.published == number


def test_hyperparameters_differ_by_pair_as_published() -> None:
    names = [name for name in ALL_RECIPES if name.startswith("classic/dkd_")]
    betas = {name.removeprefix("classic/dkd_"): options_of(name).get("beta", 8.0) for name in names}
    assert betas["wrn_40_2-wrn_16_2"] == betas["vgg13-vgg8"] == 6.0
    assert betas["resnet56-resnet20"] == betas["resnet110-resnet32"] == 2.0
    assert betas["wrn_40_2-shufflenetv1"] == betas["resnet32x4-resnet8x4"] == 8.0
    assert options_of("classic/reviewkd_resnet32x4-shufflenetv2")["reviewkd_weight"] == 8.0
    regions = options_of("classic/sdd_dkd_vgg13-vgg8")
    assert (regions["scales"], regions["beta"]) == ([1, 2], 6.0)
    assert options_of("classic/rld_vgg13-vgg8").keys().isdisjoint({"confidence_temperature"})
    assert options_of("classic/rld_resnet56-resnet20")["confidence_temperature"] == 1.0
    features = options_of("nesterov/wkd_f_wrn_40_2-shufflenetv1")
    assert [features[option] for option in ("logit_weight", "feature_weight", "ratio", "grid")] == [0.0, 0.3, 3.0, 4]
    long = ALL_RECIPES["views/mlkd_960_resnet32x4-shufflenetv2"]
    assert (long.trainer["max_epochs"], long.model["init_args"]["lr"]) == (960, 0.01)
    short = ALL_RECIPES["views/mlkd_resnet32x4-resnet8x4"]
    assert (short.trainer["max_epochs"], short.model["init_args"]["lr"]) == (240, 0.025)
    class_maps = options_of("classic/catkd_resnet32x4-shufflenetv2")
    assert [class_maps[option] for option in ("catkd_weight", "normalize", "resolution")] == [600.0, True, 4]


def test_small_table_shortens_every_schedule_to_an_eighth() -> None:
    """Compare each line with the same experiment of the full tables, or with the defaults where the pair has none."""
    for name, recipe in SMALL.items():
        experiment = name.removeprefix("small/")
        options = options_of(name)
        full_name = next((full for folder in FULL if (full := f"{folder}/{experiment}") in ALL_RECIPES), None)
        full_options: dict[str, Any] = {}
        if full_name is not None:
            full_options = options_of(full_name)
            fixed = (options.keys() | full_options.keys()) - {*SCHEDULES} - recipe.needs.keys()
            assert {o: options.get(o) for o in fixed} == {o: full_options.get(o) for o in fixed}, name
            epochs = ALL_RECIPES[full_name].trainer["max_epochs"]
            assert abs(8 * recipe.trainer["max_epochs"] - epochs) <= 4, name
        parameters = inspect.signature(locate(recipe.model["class_path"])).parameters
        for option in parameters.keys() & SCHEDULES:
            short = options.get(option, parameters[option].default)
            full = full_options.get(option, parameters[option].default)
            assert short == pytest.approx(np.divide(full, 8), abs=0.5), (name, option)


def test_small_table_has_every_method_of_one_student() -> None:
    modules = {recipe.model["class_path"] for recipe in SMALL.values()}
    for table in ("classic", "newer", "views", "other-protocols"):
        assert {recipe.model["class_path"] for recipe in read_table(BENCH_TABLES[table]).recipes.values()} <= modules
    assert all(recipe.data["init_args"]["train_fraction"] == 0.1 for recipe in SMALL.values())


@pytest.mark.parametrize("name", BENCHED)
def test_recipe_options_exist_and_weights_come_from_another_recipe(name: str) -> None:
    recipe = ALL_RECIPES[name]
    assert yaml.safe_load(recipe.text) == recipe.config
    for part in (recipe.model, recipe.data):
        assert set(part.get("init_args", {})) <= set(inspect.signature(locate(part["class_path"])).parameters)
    assert expected(recipe)["trainer.default_root_dir"] == f"runs/{name}"
    assert set(recipe.needs.values()) <= set(ALL_RECIPES)
    without_nesterov = name.startswith(("classic/", "views/", "small/")) and not name.startswith("small/wkd_")
    assert options_of(name).get("nesterov", True) == (not without_nesterov)


@pytest.mark.parametrize("method", ["KD", "SSKD (own teachers)", "HSAKD"])
def test_bench_method_is_an_ordinary_configuration(method: str, tmp_path: Path) -> None:
    cells, recipes = select_cells(["classic"], [method], ["wrn_40_2-wrn_16_2"])
    options = ["--trainer.max_epochs", "7"]
    bench = Bench(cells, recipes, seeds=[3], folder=tmp_path, teachers={}, options=options)
    *needed, task = bench.tasks()
    config = ParsedFit(args=["fit", *bench.arguments(task)], seed_everything_default=False).config.fit
    assert (config.trainer.max_epochs, task.seed) == (7, 3)
    assert all(each.seed == 0 and each.stage < task.stage for each in needed)
    arguments: Namespace = config.model.init_args
    if "teacher_weights" in arguments:
        assert (
            arguments.teacher_weights == str(tmp_path / needed[0].recipe / "seed0" / "last.ckpt") or "HSAKD" in method
        )


def test_required_runs_come_first_and_once(tmp_path: Path) -> None:
    methods = ["KD", "SSKD (own teachers)", "HSAKD"]
    cells, recipes = select_cells(["classic"], methods, ["wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1"])
    tasks = Bench(cells, recipes, seeds=[0, 1], folder=tmp_path, teachers={}, options=[]).tasks()
    assert [task for task in tasks if task.stage == 0] == [Task(0, "classic/baseline_wrn_40_2", 0)]
    assert {task.recipe for task in tasks if task.stage == 1 and not task.recipe.startswith("classic/kd")} == {
        "classic/sskd_projection_wrn_40_2",
        "classic/teacher_frozen_wrn_40_2",
    }
    assert len(tasks) == len(set(tasks)) == 3 + 3 * 2 * 2
    assert [task.stage for task in tasks] == sorted(task.stage for task in tasks)


def test_run_requiring_itself_raises_usage_error(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(
        MINE.replace("image_size: 16,,95.25", "teacher_weights: runs/digits/kd_{teacher}-{student}/last.ckpt,,-")
    )
    assert "needs its own result" in error_of(capsys, lambda: main(["bench", "mine.csv"]))


def test_probe_uses_student_of_same_seed(tmp_path: Path) -> None:
    cells, recipes = select_cells(["transfer"], ["CRD on STL-10"], [])
    bench = Bench(cells, recipes, seeds=[4], folder=tmp_path, teachers={}, options=[])
    probe = bench.tasks()[-1]
    assert f"{tmp_path}/cifar100/crd_vgg13-mobilenetv2/seed4/last.ckpt" in bench.arguments(probe)
    assert [task.seed for task in bench.tasks()] == [0, 4, 4]


@pytest.mark.parametrize("name", ["wrn_40_2", "baseline_wrn_40_2"])
def test_weight_file_replaces_teacher_run(name: str, tmp_path: Path) -> None:
    cells, recipes = select_cells(["classic"], ["KD"], ["wrn_40_2-wrn_16_2"])
    bench = Bench(cells, recipes, seeds=[0], folder=tmp_path, teachers={name: "mine.pth"}, options=[])
    (task,) = bench.tasks()
    arguments = bench.arguments(task)
    assert arguments[arguments.index("--model.init_args.teacher_weights") + 1] == "mine.pth"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("method,recipe", "name,recipe", "first line"),
        ("resnet14-resnet8", "resnet14", "first line"),
        (",,,99.0", ",,,best", "'best' is not an accuracy"),
        (",,,99.0", ",,,99.0 remembered", "'99.0 remembered' is not an accuracy"),
        ("digits/kd_{teacher}-{student}", "kd", "recipe has to be"),
        ("digits/kd_{teacher}-{student}", "digits/kd_{teacher}-{peer}", "recipe has to be"),
        ("hsakd_pl.methods.KDModule", "", "class has to name"),
        (",,,99.0", ",,99.0", "line 2 has not as many cells"),
        (",,,99.0", ",,,", "line 2 has no pair"),
        ("99.0", '"99.0"x', "not valid CSV"),
        ("data,resnet14", "data,views,resnet14", "line 2 has not as many cells"),
        ("data", "views", "first line"),
        ("image_size: 16,,95", "lr: {peer},,95", "{peer} is not one of {teacher}, {student}, {folder}"),
        ("digits/kd_{teacher}-{student}", "digits/{peer}_{teacher}", "{peer} is not one of"),
        ("image_size: 16,,95", "lr: !!int '',,95", "cannot read the options"),
        ("image_size: 16,,95", f"lr: {'[' * 5000},,95", "cannot read the options"),
        ("image_size: 16,,95", "{teacher: 1,,95", "cannot read the options"),
    ],
)
def test_invalid_bench_table_raises_naming_file(
    old: str, new: str, said: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text(MINE.replace(old, new, 1))
    told = error_of(capsys, lambda: main(["bench", "mine.csv", "--list"]))
    assert "mine.csv" in told and said in told


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("views", "0", "line 2: views is '0': write a whole number"),
        ("views", "two", "line 2: views is 'two'"),
        ("published_epoch", "first", "line 2: published_epoch is 'first': write best, last, or nothing"),
    ],
)
def test_invalid_protocol_of_a_bench_table_raises(
    column: str, value: str, said: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, line, *_ = MINE.splitlines()
    mine.write_text(f"{head.replace(',data', f',data,{column}')}\n{line.replace(',99', f',{value},99')}\n")
    assert said in error_of(capsys, lambda: main(["bench", "mine.csv", "--list"]))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "bench needs a table: classic, few-shot"),
        (["classics"], "classics is missing"),
        (["classic", "--methods", "KB"], "methods: KB is not one of teacher alone KD"),
        (["classic", "--pairs", "KD"], "pairs: KD is not one of wrn_40_2-wrn_16_2"),
        (["classic", "--task", "1000"], "task is 1000: choose one from 0 to"),
        (["classic", "--teachers", "wrn_40_2"], "teachers"),
    ],
)
def test_invalid_bench_arguments_raise_usage_error(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(capsys, lambda: main(["bench", *args]))


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("loss_weights: {ce: 1.0}", {"ce": 1.0}),
        ('"loss_weights: {ce: 1.0, kd: 2.0}"', {"ce": 1.0, "kd": 2.0}),
        ("loss_weights: {}", {}),
    ],
)
def test_bench_option_may_be_a_mapping(cell: str, value: dict[str, float], mine: Path) -> None:
    mine.write_text(MINE.replace("-; sp_weight: 100.0", "-").replace("image_size: 16,,95", f"{cell},,95"))
    assert read_table(mine).recipes["digits/kd_resnet14-resnet8"].model["init_args"]["loss_weights"] == value


def test_bench_list_shows_published_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            "bench",
            "classic",
            "--list",
            "--methods",
            "KD,SSKD (own teachers)",
            "--pairs",
            "resnet110-resnet32",
            "--format",
            "md",
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "| method | resnet110-resnet32 |",
        "| --- | --- |",
        "| KD | 73.08 |",
        "| SSKD (own teachers) | - |",
        "",
        for_markdown(PROTOCOLS_CAPTION),
        "",
        "| method | epochs | views | published_epoch |",
        "| --- | --- | --- | --- |",
        "| KD | 240 | 1 | last |",
        "| SSKD (own teachers) | 240 | 4 |  |",
    ]


def test_note_and_marks_of_published_numbers_are_shown(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(
        "method,recipe,class,options,data,note,resnet14-resnet8\n"
        "KD,digits/kd_{teacher}-{student},hsakd_pl.methods.KDModule,image_size: 16,,other views,95.25 second-hand\n"
        "SP,digits/sp_{teacher}-{student},hsakd_pl.methods.SimilarityModule,image_size: 16,,,95.5 +- 0.1 ?\n"
    )
    main(["bench", "mine.csv", "--list", "--format", "csv"])
    assert capsys.readouterr().out.splitlines() == [
        "method,resnet14-resnet8,epochs,views,published_epoch,note",
        "KD,95.25 second-hand,8,,?,other views",
        "SP,95.5 +- 0.1 ?,8,,?,",
    ]
    saved_run(mine.parent / "runs/digits/kd_resnet14-resnet8/seed0")
    cells, recipes = select_cells([str(mine)], ["KD"], [])
    assert "| KD | 3 | ? | other views |" in matrix(cells, recipes, mine.parent / "runs", "md")
    (record,) = json.loads(matrix(cells, recipes, mine.parent / "runs", "json"))
    assert (record["published"], record["note"]) == ("95.25 second-hand", "other views")


ROW = {"config": ["a.yaml"], "last_val_acc": 0.5, "best_val_acc": 0.5, "images_per_second": 1.0, "seconds": 2}
PROTOCOL = {"hash": "0", "options": {}, "limited": {}, "epochs": 480, "views": 2}


def saved_run(folder: Path, **content: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(ROW | {"seed": 0, "epochs": 3} | content))


def test_bench_shows_protocols_and_costs_of_runs_in_all_formats(tmp_path: Path) -> None:
    cells, recipes = select_cells(["views"], ["MLKD", "CRLD"], ["resnet32x4-resnet8x4"])
    costs = {"trained": 2_468_101, "deployed": [1_233_540]}, {"trained": 354_123_456, "deployed": [177_061_728]}
    mlkd, crld = (tmp_path / f"views/{name}_resnet32x4-resnet8x4/seed0" for name in ("mlkd", "crld"))
    saved_run(mlkd, epochs=480, protocol=PROTOCOL, parameters=costs[0], multiply_adds=costs[1])
    saved_run(crld, epochs=480, protocol=PROTOCOL | {"hash": "1"})
    text = matrix(cells, recipes, tmp_path, "table")
    protocols, of_costs = text.split(PROTOCOLS_CAPTION)[1].split(COSTS_CAPTION)
    mlkd_protocol, crld_protocol = protocols.strip().splitlines()[2:]
    assert mlkd_protocol.split(maxsplit=4)[:4] == ["MLKD", "480", "2", "best"]
    assert crld_protocol.endswith("numbers of a copy of the repository that others keep")
    assert [line.split() for line in of_costs.split("\n\n")[1].splitlines()[2:]] == [  # nothing is known of CRLD's
        ["MLKD", "2.47", "/", "1.23,", "354.1", "/", "177.1"],
    ]
    assert all(len(line) <= 120 for line in text.splitlines())
    for table_format in ("md", "latex"):
        assert "2.47 / 1.23, 354.1 / 177.1" in matrix(cells, recipes, tmp_path, table_format)
    expected = {"epochs": 480, "views": 2, "published_epoch": "best", "parameters_trained": 2_468_101}
    expected |= {"parameters_deployed": [1_233_540], "multiply_adds_deployed": [177_061_728]}
    expected |= {"multiply_adds_trained": 354_123_456}
    record, without_costs = json.loads(matrix(cells, recipes, tmp_path, "json"))
    assert {name: record[name] for name in expected} == expected
    assert without_costs["parameters_deployed"] is None and without_costs["note"].startswith("two views")
    line, _ = csv.DictReader(StringIO(matrix(cells, recipes, tmp_path, "csv")))
    assert line["multiply_adds_deployed"] == "177061728"


def test_views_and_published_epochs_of_tables() -> None:
    """Compare the column ``views`` with modules of the same classes."""
    views = {module: make_method(name).views for name, (module, _, _) in METHODS.items()}
    views |= {type(module): module.views for module in map(small.make, ("baseline", "teacher", "student", "mutual"))}
    views[hsakd_pl.LinearProbeModule] = hsakd_pl.LinearProbeModule.views
    plain_views = small.make("student", joint_kd_weight=0, transform_images=False).views
    for path in BENCH_TABLES.values():
        for cell in read_table(path).cells:
            model = ALL_RECIPES[cell.recipe].model
            module = locate(model["class_path"])
            plain = not model["init_args"].get("transform_images", True)  # Hinton's distillation in the paper's recipes
            assert cell.views == str(plain_views if plain else views[module]), (path, cell)
    epochs = {cell.method: cell.published_epoch for cell in [*CLASSIC, *read_table(BENCH_TABLES["newer"]).cells]}
    assert (epochs["CRD"], epochs["DKD"], epochs["WTTM"], epochs["NKD"]) == ("last", "best", "best", "")


def test_simkd_deploys_more_than_the_student(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The transfer block and the teacher's head stay with the student, in parameters and in multiply-adds."""
    monkeypatch.chdir(tmp_path)
    options = {"network": "resnet8", "teacher": "wrn_16_2", "teacher_weights": "random", "image_size": 16}
    counts = {}
    for name in ("SimKDModule", "KDModule"):
        small.run("fit", module=f"methods.{name}", model={"init_args": options})
        row = json.loads(Path(f"runs/methods.{name}/result.json").read_text())
        counts[name] = [row[cost]["deployed"][0] for cost in ("parameters", "multiply_adds")]
    more = [simkd - kd for simkd, kd in zip(counts["SimKDModule"], counts["KDModule"], strict=True)]
    convolutions = 64 * 64 + 9 * 64 * 64 + 64 * 128  # 64 channels of the student to 128 of the teacher, by 64
    norms, classes, positions = 2 * (64 + 64 + 128), 10, 4 * 4
    assert more == [convolutions + norms + (128 - 64) * classes, positions * convolutions + (128 - 64) * classes]


def test_custom_method_joins_a_bench_table(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "classic", "mine.csv", "--list", "--methods", "KD", "--format", "csv"])
    head, line = capsys.readouterr().out.splitlines()
    assert head.endswith(",resnet14-resnet8,epochs,views,published_epoch,note")
    assert line.endswith(",95.25,240; 8,1,last; ?,")  # of both tables


def test_bench_runs_resumes_and_compares(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run task by task, as in a SLURM array; a task without its teacher says so."""
    run = ["bench", "mine.csv", "--methods", "SP", *SHORT]
    assert "needs runs/digits/baseline_resnet14/seed0/last.ckpt" in error_of(
        capsys, lambda: main([*run, "--task", "1"])
    )
    for number in ("0", "1"):
        main([*run, "--task", number, "--format", "md"])  # a bench runs its tasks with its own options
    teacher, student = (Path(f"runs/digits/{name}/seed0") for name in ("baseline_resnet14", "sp_resnet14-resnet8"))
    row = json.loads((student / "result.json").read_text())
    assert row["finished"] and row["teacher_sha256"] == file_sha256(teacher / "last.ckpt")
    options = yaml.safe_load((student / "config.yaml").read_text())["model"]["init_args"]
    assert options["sp_weight"] == 100.0
    before = (student / "last.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    main(run)  # everything has a result
    assert (student / "last.ckpt").stat().st_mtime_ns == before
    shown = [line for line in capsys.readouterr().out.splitlines() if line and "──" not in line]
    data, heading, names, line, protocols, _, protocol, costs, _, cost, mark = shown
    assert data.startswith("Digits: 10 classes, ")
    assert mark.startswith("SP, resnet14-resnet8: limit_train_batches 2")
    assert (heading, names.split()) == ("limit_train_batches 2, max_epochs 1", ["method", "resnet14-resnet8"])
    # a short run is not compared with a published number
    assert line.split() == ["SP", f"{100 * row['last_val_acc']:.2f}"]
    assert (protocols, protocol.split()) == (PROTOCOLS_CAPTION, ["SP", "1", "1"])
    millions = row["parameters"]["trained"] / 1e6, row["multiply_adds"]["trained"] / 1e6
    assert (costs, cost.split()) == (COSTS_CAPTION, "SP {0:.2f} / {0:.2f}, {1:.1f} / {1:.1f}".format(*millions).split())


MARKED: dict[str, tuple[dict[str, Any], str]] = {
    "changed": ({"changes": [{"option": "data.init_args.batch_size"}]}, "options changed on resume"),
    "dirty": ({"commit": "0123-dirty"}, "uncommitted changes"),
    "unfinished": ({"finished": False}, "is unfinished, epoch 3"),
    "stopped early": ({"protocol": {"hash": "0", "options": {}, "limited": {}, "epochs": 9}}, "ended in epoch 3 of 9"),
    "older validation": ({"steps": 9, "last_val_step": 6}, "its last validation was in step 6"),
}


@pytest.mark.parametrize("table_format", ["table", "md", "latex"])
@pytest.mark.parametrize("kind", MARKED)
def test_bench_table_shows_marks_of_its_runs(kind: str, table_format: str, mine: Path) -> None:
    content, mark = MARKED[kind]
    saved_run(mine.parent / "runs/digits/kd_resnet14-resnet8/seed0", **content)
    cells, recipes = select_cells([str(mine)], ["KD"], [])
    text = matrix(cells, recipes, mine.parent / "runs", table_format)
    assert mark in text.splitlines()[-1] and text.splitlines()[-1].startswith("KD, resnet14-resnet8: ")


@pytest.mark.slow
@pytest.mark.parametrize("table_format", ["table", "md", "latex"])
def test_bench_of_runs_on_different_data_has_a_section_for_each(table_format: str, mine: Path) -> None:
    splits = {name: {"fingerprint": name, "images": 5, "classes": 2, "pictures": ""} for name in ("first", "second")}
    for method, name in (("kd", "first"), ("sp", "second")):
        protocol = PROTOCOL | {"hash": name, "data": {"test": splits[name]}}
        saved_run(mine.parent / f"runs/digits/{method}_resnet14-resnet8/seed0", protocol=protocol)
    cells, recipes = select_cells([str(mine)], ["KD", "SP"], [])
    text = matrix(cells, recipes, mine.parent / "runs", table_format)
    _, first, second = re.split("data: 2 classes, 5 test images, fingerprint ", text)
    assert first.startswith("first") and "KD" in first and "SP" not in first
    assert second.startswith("second") and "SP" in second and "KD" not in second


def test_bench_continues_after_failed_run(mine: Path) -> None:
    broken = "alone,digits/baseline_{student},hsakd_pl.BaselineModule,lr: -1.0,,-"
    mine.write_text("\n".join([MINE.splitlines()[0], broken, MINE.splitlines()[1], ""]))
    finished = hsakd("bench", "mine.csv", *SHORT)
    assert finished.returncode == 2 and "error: digits/baseline_resnet8 failed" in finished.stderr
    assert "error: lr must be at least 0, and finite, got -1.0" in finished.stderr
    assert any(line.split()[:1] == ["teacher"] for line in finished.stdout.splitlines())


def test_bench_dry_run_measures_and_writes_nothing(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "mine.csv", "--dry-run", "--methods", "KD", "--trainer.accelerator=cpu", "--save_every_minutes=5"])
    teacher, kd, total, *arrays = capsys.readouterr().out.rstrip().splitlines()
    assert teacher.split()[:2] == ["0", "to"] and kd.endswith("digits/kd_resnet14-resnet8, seed 0")
    assert total.split()[0].replace(".", "").isdigit() and len(arrays) == 2
    assert not list(Path("runs").rglob("*.ckpt"))


def test_bench_table_columns_are_documented() -> None:
    told = inspect.getdoc(sys.modules["hsakd_pl.recipes.bench"]) or ""
    assert all(f"``{column}``" in told for column in (*COLUMNS, *OPTIONAL_COLUMNS))
    assert all(f"``75.2 {mark}``" in told for mark in MARKS)


def test_teacher_answers_are_kept_for_the_methods_that_can_read_them(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["bench", str(mine), "--teacher-answers", "answers", *SHORT, "--trainer.logger=false"]
    for task in range(3):  # in this process: teacher, KD, SP
        main([*tasks, "--task", str(task)])
        assert bool(list(Path().glob("answers/*/*.answers"))) == (task > 0)
    configured = {
        path.parts[2].partition("_")[0]: yaml.safe_load(path.read_text())["model"]["init_args"]
        for path in Path("runs").glob("digits/*/seed0/config.yaml")
    }
    assert configured["kd"]["teacher_answers"] == "answers"
    assert configured["sp"]["teacher_answers"] is None and "teacher_answers" not in configured["baseline"]
    capsys.readouterr()
    main([*tasks])  # all are done: the option decides nothing
    assert "KD" in capsys.readouterr().out


def test_runs_of_the_largest_answers_share_no_table_with_others(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = ["bench", str(mine), "--methods", "KD", *SHORT, "--trainer.logger=false"]
    kept = [*bench, "--teacher-answers", "answers", "--teacher-answers-top", "3"]
    for task in ("0", "1"):
        main([*kept, "--task", task])
    result = json.loads(Path("runs/digits/kd_resnet14-resnet8/seed0/result.json").read_text())
    assert result["protocol"]["options"]["model.init_args.teacher_answers_top"] == 3
    capsys.readouterr()
    main(kept)  # all are done
    _, heading, _, _, line, *_ = filter(None, capsys.readouterr().out.splitlines())
    assert heading == "teacher_answers_top 3, limit_train_batches 2, max_epochs 1" and line.split()[0] == "KD"
    assert "teacher_answers_top 3, not None" in error_of(capsys, lambda: main(bench))
    main([*bench, "--folder", "whole", "--task", "0"])
    main([*bench, "--folder", "whole", "--task", "1"])
    assert "teacher_answers_top None, not 3" in error_of(capsys, lambda: main([*kept, "--folder", "whole"]))


def test_dry_run_counts_a_teacher_once_where_answers_are_kept(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(monkeypatch)
    mine.write_text(MINE + MINE.splitlines()[2].replace("KD,digits/kd", "DKD,digits/dkd").replace("KDM", "DKDM") + "\n")
    plan = ["bench", "mine.csv", "--dry-run", "--methods", "KD,DKD,SP", "--seeds", "0-1", "--trainer.accelerator=cpu"]
    main([*plan, "--trainer.max_epochs=1", "--teacher-answers", "kept/answers"])
    *_, total, note, _, _ = shown = capsys.readouterr().out.rstrip().splitlines()
    tasks = [line.partition("digits/")[2] for line in shown if "digits/" in line]
    assert tasks == [
        "baseline_resnet14, seed 0",
        "kd_resnet14-resnet8, seed 0",
        "kd_resnet14-resnet8, seed 1",
        "sp_resnet14-resnet8, seed 0",
        "sp_resnet14-resnet8, seed 1",
        "dkd_resnet14-resnet8, seed 0, reads answers",
        "dkd_resnet14-resnet8, seed 1, reads answers",
    ]
    hours = [float(hours) for hours in re.findall(r"([\d.]+) h  digits", "\n".join(shown))]
    assert float(total.split()[0]) == pytest.approx(sum(hours), abs=0.1) and "keep answers" in note
    steps = MEASURED_STEPS + WARMUP_STEPS
    assert asked.batches == 3 * steps  # KD and DKD were measured without questions, too
    assert not Path("kept").exists() and not list(Path().rglob("*.answers"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher-answers-top", "3"], "--teacher-answers-top has no effect without --teacher-answers"),
        (["--teacher-answers-dtype", "float16"], "--teacher-answers-dtype has no effect without"),
        (["--teacher-answers-top", "3", "--list"], "--teacher-answers-top has no effect with --list"),
        (["--teacher-answers-gb", "3"], "no effect without --teacher-answers"),
        (["--teacher-answers", "answers", "--list"], "--teacher-answers has no effect with --list"),
    ],
)
def test_bench_refuses_options_of_teacher_answers_without_effect(
    options: list[str], said: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(capsys, lambda: main(["bench", str(mine), *options]))
