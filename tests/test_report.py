"""Test a run's row, the table of many runs, and sweeps over seeds."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from programs import hsakd
from small import run

from hsakd_pl.cli.main import main
from hsakd_pl.commands import seeds, sweep
from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import RESULT_FILE, TEST_FORMAT, read_test
from hsakd_pl.report.groups import groups
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import as_text

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def row_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RESULT_FILE).read_text())


def test_fit_writes_a_complete_result_row() -> None:
    folder = run("fit", "--seed_everything", "3", trainer={"max_epochs": 2, "limit_val_batches": 2})
    row = row_of(folder)
    assert (row["config"], row["seed"], row["epochs"], row["devices"]) == (["config.yaml"], 3, 2, 1)
    saved = torch.load(folder / "best.ckpt", weights_only=True)["callbacks"]
    (best,) = {
        float(state["best_model_score"]) for state in saved.values() if state.get("best_model_score") is not None
    }
    assert row["best_val_acc"] == best and row["best_val_acc"] >= row["last_val_acc"]
    assert row["last_val_acc"] == row["metrics"]["val/acc"] and "train/loss" in row["metrics"]
    assert row["versions"]["torch"] == torch.__version__
    assert row["cpu"]["threads"] == torch.get_num_threads() and row["cpu"]["model"] in row["device"]
    assert 0 < 2 * 2 * 64 / row["images_per_second"] <= row["seconds"]
    assert row["commit"] is None or len(row["commit"].removesuffix("-dirty")) == 40


def test_result_row_adds_up_resumed_parts() -> None:
    folder = run("fit")
    first = row_of(folder)
    run("fit", "--ckpt_path", "last", trainer={"max_epochs": 3})
    row = row_of(folder)
    assert (row["epochs"], first["epochs"]) == (3, 1)
    (state,) = _states(folder / "last.ckpt")
    assert state["spent"]["images"] == 3 * 2 * 64
    assert row["seconds"] > first["seconds"]


def _states(checkpoint: Path) -> list[dict[str, Any]]:
    return [state for state in torch.load(checkpoint, weights_only=True)["callbacks"].values() if "spent" in state]


def test_trial_and_failed_runs_write_no_row() -> None:
    folder = run("fit", trainer={"fast_dev_run": True})
    assert not (folder / RESULT_FILE).exists()
    with pytest.raises(SystemExit):
        run("fit", model={"init_args": {"lr": 1e30}}, trainer={"max_epochs": 3})
    assert not (folder / RESULT_FILE).exists()


def test_student_row_names_its_teacher() -> None:
    teacher = run("fit", module="TeacherModule") / "last.ckpt"
    arguments = {"network": "resnet8", "teacher": "resnet8", "teacher_weights": str(teacher)}
    row = row_of(run("fit", module="StudentModule", model={"init_args": arguments}))
    assert row["teacher_sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()


def test_report_table_averages_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    common = {"config": ["a/one.yaml"], "images_per_second": 100.0, "seconds": 10.0, "best_val_acc": 0.9}
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        Path("runs", f"seed{seed}").mkdir(parents=True)
        Path("runs", f"seed{seed}", RESULT_FILE).write_text(json.dumps({**common, "last_val_acc": accuracy}))
    main(["report", "runs"])
    shown = capsys.readouterr().out
    assert "72.00 +- 2.00" in shown and "90.00 +- 0.00" in shown and " 3 " in shown
    assert "older row, no protocol recorded" in shown
    rows = [json.loads(line) for line in Path("runs/rows.jsonl").read_text().splitlines()]
    assert [row["folder"] for row in rows] == [f"runs/seed{seed}" for seed in range(3)]


def stored(folder: str, data: str, accuracy: float, **options: Any) -> None:
    """Write the result of a run on the data of a module, whose test split has its name as fingerprint."""
    split = {"fingerprint": data, "images": 1000, "classes": 10, "pictures": ""}
    options = {"data.class_path": f"hsakd_pl.{data}DataModule", "model.class_path": "hsakd_pl.BaselineModule"} | options
    protocol = {"hash": folder, "options": options, "limited": {}, "epochs": None, "data": {"test": split}}
    row = {"config": [], "seed": 0, "best_val_acc": accuracy, "last_val_acc": accuracy, "protocol": protocol}
    Path("runs", folder).mkdir(parents=True)
    row |= {"images_per_second": 1.0, "seconds": 1.0}
    Path("runs", folder, RESULT_FILE).write_text(json.dumps(row))


@pytest.mark.parametrize("table_format", ["table", "md", "latex"])
def test_each_data_set_has_a_table_with_its_name(table_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    stored("a", "Digits", 0.71)
    stored("b", "CIFAR100", 0.32)
    stored("c", "Digits", 0.73, **{"model.init_args.lr": 0.1})
    main(["report", "runs", "--format", table_format, "--against", "BaselineModule, lr 0.1"])
    digits, cifar100 = capsys.readouterr().out.split("CIFAR100: 10 classes, 1,000 test images, fingerprint CIFAR100")
    assert digits.startswith("Digits: 10 classes, 1,000 test images, fingerprint Digits")
    assert "71.00" in digits and "73.00" in digits and "32.00" not in digits
    assert "32.00" in cifar100 and "71.00" not in cifar100 and "73.00" not in cifar100
    assert "-2.00, n = 1" in digits and "no common seed" not in cifar100  # differences are of one data set
    main(["report", "runs", "--format", "json", "--against", "BaselineModule, lr 0.1"])
    by_fingerprint = {record["data"].split()[-1]: record for record in json.loads(capsys.readouterr().out)}
    assert by_fingerprint["CIFAR100"]["difference"] is None and by_fingerprint["Digits"].keys() >= {"data", "run"}


def test_report_names_folders_of_failed_runs(capsys: pytest.CaptureFixture[str]) -> None:
    stored("a", "Digits", 0.71)
    Path("runs/a/config.yaml").touch()
    Path("runs/b").mkdir()
    Path("runs/b/config.yaml").touch()
    main(["report", "runs", "--format", "csv"])
    said = capsys.readouterr().err
    assert "runs/b has no result.json" in said and "runs/a" not in said


def test_rows_say_once_what_all_of_them_change(capsys: pytest.CaptureFixture[str]) -> None:
    for folder, lr, epochs in (("a", 0.1, 1), ("b", 0.2, 2), ("c", 0.3, 2)):
        stored(folder, "CIFAR100", 0.3, **{"model.init_args.lr": lr, "trainer.max_epochs": epochs})
    changed = groups(collect(Path("runs")))[1:]
    shown = as_text(changed, "table")
    assert "fingerprint CIFAR100; accuracies in %; all rows: max_epochs 2\n" in shown
    assert shown.count("max_epochs 2") == 1 and shown.count("BaselineModule, lr 0.3 ") == 2  # results and costs


@pytest.mark.parametrize("width", [80, 140])
def test_table_fits_a_terminal(width: int) -> None:
    name = "cifar100/student_joint_wrn_40_2-wrn_16_2"
    row = {"folder": "a", "config": [f"{name}.yaml"], "last_val_acc": 0.5, "best_val_acc": 0.5, "test": None}
    row |= {"images_per_second": 1.0, "seconds": 2.0, "history": []}
    [group] = groups([row])
    group = group._replace(changed=("train_fraction 0.1", "milestones [5, 7]", "check_val_every_n_epoch 30"))
    whole = as_text([group], "table").splitlines()
    assert max(map(len, whole)) > width
    broken = as_text([group], "table", width=width)
    assert max(map(len, broken.splitlines())) <= width
    assert "older row," in broken and broken.count("check_val_every_n") >= 1
    assert set("".join(whole)) - set(broken) <= {" "}


def test_report_without_results_raises() -> None:
    with pytest.raises(UsageError, match=r"result\.json"):
        collect(Path())
    Path(RESULT_FILE).write_text("{")
    with pytest.raises(UsageError, match="is not a result"):
        collect(Path())


def test_sweep_parses_seeds_and_folder() -> None:
    assert sweep.parse_seeds("0-2,7") == [0, 1, 2, 7]
    for text in ("", "2-1", "a"):
        with pytest.raises(ValueError):  # noqa: PT011 argparse prints it with the option's name
            sweep.parse_seeds(text)
    recipe, machine = (str(REPOSITORY / "configs" / name) for name in ("digits/teacher_joint_resnet20", "trainer/cpu"))
    options = ["--config", f"{recipe}.yaml", f"--config={machine}.yaml"]
    for given, folder in (
        ([], "runs/digits/teacher_joint_resnet20"),
        (["--trainer.default_root_dir", "x"], "x"),
        (["--trainer.default_root_dir=y"], "y"),
        (["--trainer", '{"max_epochs": 1, "default_root_dir": "z"}'], "z"),
        (["--trainer.default_root_dir=y", "--trainer.max_epochs", "1", "--trainer.default_root_dir", "w"], "w"),
    ):
        assert seeds.recipe_folder([*options, *given]) == Path(folder)
    classes = ["--model=hsakd_pl.BaselineModule", "--model.network=resnet8", "--data=hsakd_pl.DigitsDataModule"]
    with pytest.raises(UsageError, match="default_root_dir"):
        seeds.recipe_folder([*classes, "--config", f"{machine}.yaml"])
    Path("broken.yaml").write_text("trainer: {")
    for missing_or_broken in ("nowhere.yaml", "broken.yaml"):
        with pytest.raises(SystemExit) as end:
            main(["sweep", "--seeds", "0", "--config", missing_or_broken])
        assert end.value.code == 2


def test_run_starts_another_process_of_hsakd(capfd: pytest.CaptureFixture[str]) -> None:
    assert seeds.run_process(["recipes"], debug=False) == 0
    assert "digits/teacher_joint_resnet20" in capfd.readouterr().out
    assert seeds.run_process(["recipe"], debug=True) == 2
    printed = capfd.readouterr().err
    assert "Traceback" in printed and "there is no command recipe" in printed


@pytest.mark.slow
def test_sweep_runs_all_seeds_and_is_repeatable(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = yaml.safe_load((REPOSITORY / "configs/digits/teacher_joint_resnet20.yaml").read_text())
    recipe["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "accelerator": "cpu"}
    recipe["trainer"]["default_root_dir"] = "runs"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))

    def swept(seeds: str) -> str:
        finished = hsakd("sweep", "--seeds", seeds, "--config", "recipe.yaml")
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    main(["sweep", "--seeds", "0-1", "--config", "recipe.yaml", "--dry-run"])
    *planned, total = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in planned] == ["0", "1"] and all(line.startswith("to do ") for line in planned)
    assert float(total.split()[0]) >= 0 and "hours, one after the other" in total
    assert not Path("runs").exists()
    swept("1")
    main(["sweep", "--seeds", "0-1", "--config", "recipe.yaml", "--dry-run"])
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[:2]] == ["to do", "done"]
    before = row_of(Path("runs/seed1"))
    Path("runs/seed1/last.ckpt").rename("last.ckpt")
    assert "seed 1 has a result" in swept("0-1")
    rows = [json.loads(line) for line in Path("runs/rows.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[1] == {"folder": "runs/seed1", **before}
    assert all(Path(f"runs/seed{seed}/test.json").exists() for seed in (0, 1))
    assert rows[0]["metrics"]["train/loss"] != rows[1]["metrics"]["train/loss"]


# As version 0.10 wrote it, with percentages and without a format
OLD_TEST = """{
 "checkpoint": "runs/a/last.ckpt", "epoch": 2, "sha256": "00", "split": "test", "images": 200, "limited": {},
 "acc": 79.5, "acc_top5": 95.0, "branch1_class": 70.25, "branch1_joint_top5": 68.0, "peer2_acc": 0.5,
 "nll": 1.25, "ece": 4.125, "peer1_ece": 0.5, "peer1_nll": 3.5,
 "ensemble": {"all_heads": {"acc": 80.5, "nll": 0.75, "ece": 3.0, "multiply_adds": 1000}},
 "early_exit": [{"threshold": 0.5, "acc": 75.5, "multiply_adds": 600, "left": [60.0, 40.0]}],
 "seconds": 30.5, "device": "CPU, 2 cores", "devices": 1
}"""


def test_percentages_of_old_test_file_are_read_as_fractions(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text(OLD_TEST)
    test = read_test(path)
    assert test == {
        "checkpoint": "runs/a/last.ckpt",
        "epoch": 2,
        "sha256": "00",
        "split": "test",
        "images": 200,
        "limited": {},
        "acc": 0.795,
        "acc_top5": 0.95,
        "branch1_class": 0.7025,
        "branch1_joint_top5": 0.68,
        "peer2_acc": 0.005,
        "nll": 1.25,
        "ece": 0.04125,
        "peer1_ece": 0.005,
        "peer1_nll": 3.5,
        "ensemble": {"all_heads": {"acc": 0.805, "nll": 0.75, "ece": 0.03, "multiply_adds": 1000}},
        "early_exit": [{"threshold": 0.5, "acc": 0.755, "multiply_adds": 600, "left": [0.6, 0.4]}],
        "seconds": 30.5,
        "device": "CPU, 2 cores",
        "devices": 1,
    }
    path.write_text(json.dumps({"format": TEST_FORMAT, **test}))
    assert read_test(path) == {"format": TEST_FORMAT, **test}
    path.write_text(json.dumps({"format": TEST_FORMAT + 1, **test}))
    with pytest.raises(UsageError, match=r"test\.json has format 3.*update hsakd_pl"):
        read_test(path)


def test_report_shows_tests_of_both_formats_in_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"config": ["a/one.yaml"], "epochs": 2, "last_val_acc": 0.7, "best_val_acc": 0.7}
    result |= {"images_per_second": 100.0, "seconds": 10.0}
    new_test = json.dumps({"format": TEST_FORMAT, "epoch": 2, "acc": 0.775})
    for name, test in (("old", OLD_TEST), ("new", new_test)):
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        folder.joinpath(RESULT_FILE).write_text(json.dumps(result))
        folder.joinpath("test.json").write_text(test)
    main(["report", "runs"])
    assert "78.50 +- 1.41" in capsys.readouterr().out
