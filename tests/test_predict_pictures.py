"""Test ``hsakd predict SOURCE IMAGES`` with a run, a checkpoint or an export."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import error_of, run
from test_description import NAMES, photographs

from hsakd_pl.cli.main import main
from hsakd_pl.export import export_student

DATA = {"class_path": "hsakd_pl.ImageNetDataModule"}
INIT = {"root": "photos", "image_size": 16, "num_workers": 0, "batch_size": 4}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a run whose training images and configuration are deleted."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    folder = run("fit", data=DATA | {"init_args": INIT})
    shutil.rmtree("photos/train")
    (folder / "config.yaml").unlink()
    Path("photos/val/broken.png").write_bytes(b"no picture")
    return folder


def predictions(source: Path, *options: str) -> list[dict[str, object]]:
    return classified(source, "photos/val", *options)


def classified(source: Path, *arguments: str) -> list[dict[str, object]]:
    main(["predict", str(source), *arguments, "--accelerator", "cpu", "--num_workers", "0"])
    return [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]


def test_run_checkpoint_and_export_predict_the_same(trained: Path) -> None:
    export_student(trained, "exported", formats=["safetensors"])
    found = [predictions(source) for source in (trained, trained / "last.ckpt", Path("exported"))]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 13 and sum("error" in row for row in found[0]) == 1
    assert {row["class"] for row in found[0] if "error" not in row} <= {*NAMES}
    assert Path("predictions.csv").read_text().count("\n") == 14


def test_predict_command_matches_configured_predict(trained: Path) -> None:
    alone = predictions(trained)
    main(["predict", "--config", "config.yaml", "--ckpt_path", "last", "--data.init_args.predict_dir", "photos/val"])
    beside = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert alone == beside


@pytest.mark.parametrize("transforms", ["flips", "rotations*flips"])
def test_predicted_agreement_covers_learnt_transformations(trained: Path, transforms: str) -> None:
    photographs(Path("photos"))
    options: dict[str, Any] = {"module": "TeacherModule", "data": DATA | {"init_args": INIT}}
    options["model"] = {"init_args": {"transforms": transforms}}
    folder = run("fit", **options)
    run("predict", "--ckpt_path", "last", "--data.init_args.predict_dir", "photos/val", **options)
    expected = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    export_student(folder, "exported", formats=["safetensors"])
    assert predictions(folder) == predictions(Path("exported")) == expected
    assert json.loads(Path("exported/config.json").read_text())["transforms"] == transforms


def test_predict_options_top_batch_size_and_folder_apply(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", str(trained), "photos/val", "--top", "2", "--batch_size", "5", "--folder", "out"])
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert {len(line["top"]) for line in lines if "error" not in line} == {2}
    assert "predictions are in out/predictions.csv" in capsys.readouterr().out


def test_predict_shows_images_of_several_classes_with_their_folders(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = predictions(trained)
    shown = re.findall(r"\w+/\d+\.png", capsys.readouterr().out)
    assert shown == [str(Path(str(row["image"])).relative_to("photos/val")) for row in rows[::3]]
    assert len({Path(image).parent for image in shown}) >= 3


def test_predict_takes_files_and_folders(trained: Path) -> None:
    expected = {row["image"]: row for row in predictions(trained)}
    first, second, *_ = expected
    folder = str(Path("photos/val", NAMES[1]))
    below = [image for image in expected if str(image).startswith(folder)]
    broken = "photos/val/broken.png"
    asked: dict[tuple[str, ...], list[Any]] = {
        (str(first),): [first],
        (str(second), str(first)): [second, first],
        (folder, str(below[0]), broken): [*below, broken],
    }
    for images, found in asked.items():
        Path("predictions.csv").unlink()  # of other images, which are not replaced
        Path("predictions.jsonl").unlink()
        rows = classified(trained, *images)
        assert rows == [expected[image] for image in found]
    both = json.dumps([first, second])
    main(["predict", "--config", "config.yaml", "--ckpt_path", "last", "--data.init_args.predict_dir", both])
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert rows == [expected[first], expected[second]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/else/there", "photos/val"], "nowhere/else/there"),
        (["photos", "photos/val"], "last.ckpt"),
        (["runs/BaselineModule", "nothing"], "nothing does not exist"),
        (["runs/BaselineModule", "photos/val", "photos/val/nothing.png"], "nothing.png does not exist"),
        (["runs/BaselineModule", "config.yaml"], "config.yaml is neither a folder nor an image"),
        (["runs/BaselineModule", "photos/val", "--top", "9"], "top"),
        (["runs/BaselineModule", "photos/val", "--on_error", "stop"], "on_error"),
        (["runs/BaselineModule"], "IMAGES"),
    ],
)
def test_invalid_predict_arguments_raise_usage_error(
    trained: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in error_of(capsys, lambda: main(["predict", *arguments]))
