"""Test what a run records, and which runs share a row."""

import csv
import hashlib
import json
import math
import shutil
import statistics
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from small import error_of, history, run

from hsakd_pl import create_network
from hsakd_pl.cli.configuration import options_of
from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.cli.main import main
from hsakd_pl.commands.seeds import ParsedFit
from hsakd_pl.files.weights import read_weight_file
from hsakd_pl.recipes import RECIPES
from hsakd_pl.recipes.data_sets import PUBLISHED_DATA
from hsakd_pl.records.formats import Row
from hsakd_pl.records.options import WEIGHT_OPTIONS
from hsakd_pl.records.protocol import kept_options, protocol_hash
from hsakd_pl.report.differences import differing, expected
from hsakd_pl.report.groups import groups
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import as_text, find_group, lines, records

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STUDENT = "cifar100/student_joint_wrn_40_2-wrn_16_2"
# The data that the published numbers belong to
PUBLISHED = PUBLISHED_DATA["CIFAR100"]
CIFAR100 = {
    split: {"classes": 100, "images": images, "fingerprint": split, "pictures": PUBLISHED.pictures[split]}
    for split, images in PUBLISHED.images.items()
}
# Options of a resolved configuration outside the protocol: seeds, paths, and how a run is displayed
OUTSIDE = {
    *("config", "seed_everything", "ckpt_path", "weights_only", "save_every_minutes"),
    *(f"data.init_args.{name}" for name in ("seed", "root", "download", "predict_dir", "unlabelled")),
    *(f"model.init_args.{name}" for name in ("weights", "teacher_weights", "teacher_sha256")),  # their hashes count
    "model.init_args.ensemble",  # extra output of a test
    *(f"model.init_args.teacher_answers{suffix}" for suffix in ("", "_gb")),  # equal results bit by bit
    *(f"trainer.{name}" for name in ("default_root_dir", "logger", "profiler", "num_sanity_val_steps", "max_time")),
    *(f"trainer.enable_{name}" for name in ("checkpointing", "progress_bar", "model_summary", "autolog_hparams")),
    *(f"trainer.{name}" for name in ("log_every_n_steps", "detect_anomaly", "fast_dev_run", "barebones")),
    "trainer.model_registry",
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


def parsed(*options: str) -> dict[str, Any]:
    """Return the effective options of a fit."""
    given = ["fit", "--config", str(CONFIGS / f"{STUDENT}.yaml"), *options]
    return options_of(ParsedFit(args=given, seed_everything_default=False).config.fit)


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    return parsed()


def row(options: dict[str, Any], seed: int = 0, folder: str = "a", acc: float = 0.5, **changes: Any) -> Row:
    """Return a row as written by a run with these options."""
    kept = kept_options(options)
    protocol = {"hash": protocol_hash(kept), "options": kept, "epochs": 240, "data": CIFAR100}
    made = {"config": ["x.yaml"], "recipe": STUDENT, "seed": seed, "finished": True, "epochs": 240, "folder": folder}
    made |= {"last_val_acc": acc, "best_val_acc": acc, "images_per_second": 100.0, "seconds": 7200.0}
    return {**made, "protocol": protocol, "history": [], "test": None, "details": None, **changes}


def other(value: Any) -> Any:
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}, other"


def test_runs_that_differ_in_one_option_never_share_a_row(options: dict[str, Any]) -> None:
    assert len(options) > 80
    for option, value in options.items():
        found = groups([row(options), row({**options, option: other(value)}, seed=1, folder="b")])
        assert len(found) == (1 if option in OUTSIDE else 2), option
        assert len({group.name for group in found}) == len(found), option


def test_new_option_makes_another_row(options: dict[str, Any]) -> None:
    for option in ("model.init_args.mine", "trainer.callbacks.init_args.decay", "optimizer.init_args.lr"):
        assert len(groups([row(options), row({**options, option: 1}, seed=1)])) == 2


def test_command_line_overrides_are_part_of_protocol(options: dict[str, Any]) -> None:
    for argument in ("--model.init_args.lr=0.1", "--data.init_args.batch_size=32", "--trainer.max_epochs=3"):
        assert len(groups([row(options), row(parsed(argument), seed=1)])) == 2
    callback = '[{"class_path": "pytorch_lightning.callbacks.StochasticWeightAveraging", "init_args": {"swa_lrs": 1}}]'
    assert len(groups([row(options), row(parsed(f"--trainer.callbacks={callback}"), seed=1)])) == 2


@pytest.mark.parametrize("name", [STUDENT, "digits/teacher_joint_resnet20", "imagenet/teacher_joint_resnet34_imagenet"])
def test_unchanged_recipe_has_no_differences(name: str) -> None:
    given = ["fit", "--config", str(CONFIGS / f"{name}.yaml")]
    options = kept_options(options_of(ParsedFit(args=given, seed_everything_default=False).config.fit))
    assert differing(expected(RECIPES[name]), options) == {}


def test_published_number_appears_only_next_to_unchanged_recipe(options: dict[str, Any]) -> None:
    machine = {**options, "trainer.accelerator": "gpu", "trainer.precision": "bf16-mixed"}
    changed = {**options, "model.init_args.lr": 0.1}
    found = groups([row(options, acc=0.77), row(machine, acc=0.78), row(changed, acc=0.79)])
    table = lines(found)
    assert [line["paper"] for line in table] == ["78.67 +- 0.20", "78.67 +- 0.20", ""]
    assert [line["to paper"] for line in table] == ["-1.67", "-0.67", ""]
    assert [line["run"] for line in table] == [
        STUDENT,
        f"{STUDENT}, accelerator gpu, precision bf16-mixed",
        f"{STUDENT}, lr 0.1",
    ]


def test_difference_to_another_row_uses_common_seeds(options: dict[str, Any]) -> None:
    other_options = {**options, "model.init_args.lr": 0.1}
    ours = [row(options, seed, acc=acc) for seed, acc in enumerate((0.70, 0.72, 0.77, 0.5))]
    theirs = [row(other_options, seed, acc=acc) for seed, acc in enumerate((0.69, 0.70, 0.72))]
    first, second = groups([*ours, *theirs])
    found = records([first, second], against=second)[0]
    # differences 1, 2, 5: mean 2.667, standard deviation 2.082, t(0.975, 2) = 4.303
    half = 4.302653 * statistics.stdev((1, 2, 5)) / math.sqrt(3)
    assert found["common_seeds"] == 3 and found["difference"] == pytest.approx(8 / 3)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((8 / 3 - half, 8 / 3 + half), abs=1e-4)
    shown = as_text([first, second], "table", second)
    assert "+2.67 [-2.50, +7.84], n = 3" in shown and f"to {second.name}" in shown
    (alone,) = records(groups(ours[3:]), against=second)
    assert alone["difference"] is None and alone["common_seeds"] == 0
    (one,) = records(groups(ours[:1]), against=second)
    assert one["difference"] == pytest.approx(1) and one["difference_low"] is None


def test_comparison_row_is_selected_by_name_part_or_hash(options: dict[str, Any]) -> None:
    first, second = groups([row(options), row({**options, "model.init_args.lr": 0.1})])
    for name in (second.name, "lr 0.1", "wrn_16_2, lr 0.1", second.rows[0]["protocol"]["hash"]):
        assert find_group([first, second], name) is second
    for name in ("wrn_16", "nothing"):
        with pytest.raises(Exception, match=f"against: '{name}' matches"):
            find_group([first, second], name)


def test_ledger_prints_every_format(options: dict[str, Any]) -> None:
    long = {**options, "model.init_args.network": "a_network_with_a_name_that_is_longer_than_a_terminal_is_wide" * 2}
    found = groups([row(options, 0, acc=0.7), row(options, 1, acc=0.72), row(long)])
    for form in ("table", "md", "latex"):
        text = as_text(found, form)
        assert "71.00" in text and "1.41" in text and "78.67" in text
        name = long["model.init_args.network"][:40].replace("_", r"\_" if form == "latex" else "_")
        assert any(name in line and "50.00" in line for line in text.splitlines())  # not cut at 80 columns
    assert as_text(found, "md").splitlines()[3].startswith("| --- |")
    assert r"\toprule" in as_text(found, "latex") and r"71.00 $\pm$ 1.41" in as_text(found, "latex")
    (numbers, _) = csv.DictReader(StringIO(as_text(found, "csv")))
    assert float(numbers["last_mean"]) == pytest.approx(71) and float(numbers["paper"]) == 78.67
    assert json.loads(as_text(found, "json"))[0]["last_std"] == pytest.approx(math.sqrt(2))


def test_ledger_marks_limited_and_repeated_runs(options: dict[str, Any]) -> None:
    limited = {**options, "trainer.limit_train_batches": 2}
    (found,) = groups([row(options, 0, "a"), row(options, 0, "b", acc=0.9), row(options, 1, "c", commit="1f-dirty")])
    assert found.marks == ["seed 0 has 2 runs", "uncommitted changes"]
    assert [each["folder"] for each in found.rows] == ["a", "c"] and [each["folder"] for each in found.others] == ["b"]
    (found,) = groups([row(options, 0, "a"), row(options, 1, "b", finished=False, epochs=7)])
    assert found.marks == ["b is unfinished, epoch 7"] and len(found.rows) == 1
    (found,) = groups([row(options, epochs=12, changes=[{"option": "x"}])])
    assert found.marks == ["a ended in epoch 12 of 240", "options changed on resume"]
    made = row(limited)
    made["protocol"]["limited"] = {"trainer.limit_train_batches": 2}
    assert groups([made])[0].marks == ["limit_train_batches 2"]
    old = {name: made[name] for name in ("config", "last_val_acc", "best_val_acc", "images_per_second", "seconds")}
    found = groups([{**old, "folder": name, "history": [], "test": None} for name in ("a", "b")] + [row(options)])
    assert [len(group.rows) for group in found] == [2, 1] and found[0].marks == ["older row, no protocol recorded"]


def test_run_writes_its_files() -> None:
    folder = run("fit", "--seed_everything", "3", module="TeacherModule", trainer={"max_epochs": 3})
    assert {"best.ckpt", "config.yaml", "curves.png", "last.ckpt", "metrics.csv", "result.json"} == {
        path.name for path in folder.iterdir() if not path.name.startswith(".")
    }
    (found,) = collect(folder)
    assert [line["epoch"] for line in found["history"]] == [1, 2, 3]
    assert [line["step"] for line in found["history"]] == [2, 4, 6]
    best = max(found["history"], key=lambda line: line["val/acc"])
    assert (found["best_val_acc"], found["best_epoch"]) == (best["val/acc"], best["epoch"])
    assert (
        found["finished"]
        and found["resumes"] == 0
        and found["device_hours"] == pytest.approx(found["seconds"] / 3600, abs=1e-4)
    )
    protocol = found["protocol"]
    facts = {"epochs": 3, "optimizer": "SGD", "lr": 0.01, "nesterov": True, "batch_size": 64, "views": 4, "devices": 1}
    assert protocol.items() >= facts.items()
    assert protocol["augmentation"] == "PadCropFlip(padding=2, flip=False)" and protocol["validated_on"] == "test split"
    assert protocol["limited"] == {"trainer.limit_train_batches": 2}
    assert protocol["options"]["model.init_args.num_classes"] == 10  # the value used, not the default
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["seed_everything"] == 3 and saved["model"]["init_args"]["lr"] == 0.01


def test_saved_configuration_suffices_for_other_commands() -> None:
    folder = run("fit")
    Path("config.yaml").unlink()
    main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"])
    assert json.loads((folder / "test.json").read_text())["acc"] == pytest.approx(
        history(folder)[-1]["val/acc"], abs=1e-5
    )


def test_unfinished_run_and_unfinished_extension_are_marked() -> None:
    stop = {"class_path": "test_interruptions.Signal", "init_args": {"signum": 2, "at": 3}}
    with pytest.raises(SystemExit):
        run("fit", trainer={"max_epochs": 4, "callbacks": [stop]})
    folder = Path("runs/BaselineModule")
    (found,) = collect(folder)
    assert (found["finished"], found["epochs"]) == (False, 2)
    assert "unfinished, epoch 2" in groups([found])[0].marks[0]
    run("fit", "--ckpt_path", "last", trainer={"max_epochs": 4})
    (found,) = collect(folder)
    assert (found["finished"], found["epochs"], found["resumes"]) == (True, 4, 1)
    assert [line["epoch"] for line in found["history"]] == [1, 2, 3, 4]
    with pytest.raises(SystemExit):
        run(
            "fit",
            "--ckpt_path",
            "last",
            trainer={"max_epochs": 9, "callbacks": [{**stop, "init_args": {"signum": 2, "at": 12}}]},
        )
    (extended,) = collect(folder)
    assert not extended["finished"] and extended["epochs"] > 4  # as its checkpoint
    assert "unfinished" in groups([extended])[0].marks[0]


def test_result_row_records_its_teacher() -> None:
    teacher = run("fit", module="TeacherModule") / "last.ckpt"
    arguments = {"network": "resnet8", "teacher": "resnet8", "teacher_weights": str(teacher)}
    student = collect(run("fit", module="StudentModule", model={"init_args": arguments}))[0]["protocol"]
    assert student["teacher_acc"] == pytest.approx(history(teacher.parent)[-1]["val/acc"])
    published = {"net": torch.load(teacher, weights_only=True)["state_dict"], "acc": 0.7966, "epoch": 114}
    torch.save(published, "published.pth.tar")
    arguments["teacher_weights"] = "published.pth.tar"
    changed = {"max_epochs": 1, "default_root_dir": "other"}
    run("fit", module="StudentModule", model={"init_args": arguments}, trainer=changed)
    (other_student,) = collect(Path("other"))
    assert other_student["protocol"]["teacher_acc"] == 0.7966
    assert len(groups([*collect(Path("runs/StudentModule")), other_student])) == 2  # another teacher, another row


def test_report_plots_curves_of_several_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        run("fit", "--seed_everything", str(seed), trainer={"max_epochs": 2, "default_root_dir": f"runs/{seed}"})
    capsys.readouterr()
    main(["report", "runs", "--plot", "curves.svg", "--format", "json"])
    assert json.loads(capsys.readouterr().out)[0]["n"] == 2
    assert "<svg" in Path("curves.svg").read_text()
    assert "choose such an ending" in error_of(capsys, lambda: main(["report", "runs", "--plot", "curves.doc"]))
    for path in Path("runs").rglob("metrics.csv"):
        path.unlink()
    assert "has a metrics.csv" in error_of(capsys, lambda: main(["report", "runs", "--plot", "curves.png"]))
    Path("runs/0/metrics.csv").write_text("epoch,val/acc\n1,many\n")
    assert "runs/0/metrics.csv is not a result" in error_of(capsys, lambda: main(["report", "runs"]))


class Plain(pl.LightningModule):
    """Provide a custom module without networks and views, whose steps may return no loss."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3 * 16 * 16, num_classes)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), labels) if batch_idx else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_custom_module_writes_a_result_row() -> None:
    limits = {"max_epochs": 2, "limit_train_batches": 3, "accelerator": "cpu", "default_root_dir": "mine"}
    config = {"model": {"class_path": "test_ledger.Plain"}, "data": {"class_path": "hsakd_pl.DigitsDataModule"}}
    Path("mine.yaml").write_text(json.dumps({**config, "trainer": limits}))
    HSAKDCLI(pl.LightningModule, args=["fit", "--config", "mine.yaml"])
    (found,) = collect(Path("mine"))
    assert (found["finished"], found["epochs"], found["last_val_acc"]) == (True, 2, None)
    assert found["protocol"]["views"] is None and found["protocol"]["lr"] == 0.1


@pytest.mark.parametrize(
    ("content", "accuracy"),
    [
        ({"net": {}, "acc": 0.7966}, 0.7966),
        ({"model": {}, "acc": 79.66}, 0.7966),
        ({"state_dict": {}, "acc": "79 %", "callbacks": {"a": 1, "b": {"metrics": {"val/acc": 0.5}}}}, 0.5),
        ({"state_dict": {}, "callbacks": [1]}, None),
        ({}, None),
    ],
)
def test_accuracy_is_read_from_weight_file(content: dict[str, Any], accuracy: float | None) -> None:
    torch.save(content, "weights.pth")
    assert read_weight_file("weights.pth").accuracy == pytest.approx(accuracy)


@pytest.mark.parametrize("epoch", [239, None, "240", 241])
def test_test_of_other_weights_is_not_a_result_of_the_run(options: dict[str, Any], epoch: Any) -> None:
    own = row(options, 0, "a", test={"acc": 0.7, "epoch": 240, "data": "test", "checkpoint": "a/last.ckpt"})
    of_others = row(options, 1, "b", test={"acc": 0.9, "epoch": epoch, "data": "test", "checkpoint": "other.pth"})
    (found,) = groups([own, of_others])
    assert records([found])[0]["test_mean"] == pytest.approx(70) and found.marks == [
        "the test in a counts by its epoch, the weights are not recorded",
        "the test in b does not count: of other weights, other.pth",
    ]


def saved_numbers(option: str, seed: int) -> Path:
    """Save numbers that an option can name: costs, or weights."""
    path = Path(f"{option}-{seed}")
    torch.manual_seed(seed)
    if option == "cost_file":
        with path.open("wb") as file:
            np.save(file, np.random.default_rng(seed).uniform(0, 1, (10, 10)))
    elif option == "projection_weights":
        options = {"network": "resnet14", "weights": "teacher.pt"}
        folder = run("fit", f"--seed_everything={seed}", module=PROJECTION, model={"init_args": options})
        shutil.copy(folder / "last.ckpt", path)
        shutil.rmtree(folder)
    else:
        torch.save(create_network("resnet8" if option == "weights" else "resnet14", 10).state_dict(), path)
    return path


PROJECTION = "methods.SSKDProjectionModule"


@pytest.mark.parametrize("option", WEIGHT_OPTIONS)
def test_runs_share_a_row_by_the_content_of_a_named_file(option: str) -> None:
    torch.save(create_network("resnet14", 10).state_dict(), "teacher.pt")
    first, second = (saved_numbers(option, seed).read_bytes() for seed in (0, 1))
    modules = {"cost_file": "methods.WKDModule", "projection_weights": "methods.SSKDModule"}
    module = modules.get(option, "methods.KDModule")
    options = {"teacher": "resnet14", "image_size": 16, "teacher_weights": "teacher.pt"}

    def protocol(content: bytes, name: str) -> dict[str, Any]:
        Path(name).write_bytes(content)
        folder = run("fit", "--seed_everything=0", module=module, model={"init_args": options | {option: name}})
        row = json.loads((folder / "result.json").read_text())
        shutil.rmtree(folder)
        return row["protocol"]

    expected = protocol(first, "numbers")
    assert expected[WEIGHT_OPTIONS[option]] == hashlib.sha256(first).hexdigest()
    assert protocol(first, "renamed")["hash"] == expected["hash"]
    assert protocol(second, "numbers")["hash"] != expected["hash"]
