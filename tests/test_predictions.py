"""Test the table written by ``predict``: one row per image, broken ones included, and never partly replaced."""

import csv
import io
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import small
import torch
from PIL import Image
from small import grown_by, trainer
from torch.utils.data import DataLoader, TensorDataset

from hsakd_pl import BaselineModule, DigitsDataModule, ImageNetDataModule
from hsakd_pl.errors import UsageError
from hsakd_pl.records.predictions import NOT_FINITE, PredictionWriter

FILES = ["predictions.csv", "predictions.jsonl"]


def photos(folder: Path, *names: str) -> Path:
    """Write an image per name; names with "broken" get truncated files."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 2 * number, 0)).save(path, path.suffix[1:].replace("jpg", "jpeg"))
        if "broken" in name:
            path.write_bytes(path.read_bytes()[:50])
    return folder


def predict(
    folder: Path, module: Any = None, data: Any = DigitsDataModule, names: list[str] | None = None, **options: Any
) -> list[dict[str, str]]:
    """Return the rows of the table written next to ``folder``."""
    options = {"batch_size": 2, "num_workers": 0, "predict_dir": folder, **options}
    source, target = data(**options), folder.parent / "out"
    if names:
        source.read_class_names = lambda: names
    module = module or BaselineModule("resnet8", num_classes=source.num_classes)
    trainer(callbacks=[PredictionWriter(target)]).predict(module, source, return_predictions=False)
    return rows(target)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("on_device", "num_workers"), [(None, 0), (None, 1), (False, 0), (True, 0), (True, 1)])
def test_broken_image_becomes_a_row_with_its_error(
    tmp_path: Path, on_device: bool | None, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos(tmp_path / "photos", "a.png", "b_broken.png", "c.jpg", "d_broken.jpg", "e.png")
    (folder / "f.jpg").write_bytes((folder / "c.jpg").read_bytes()[:-200])  # with a complete header
    (folder / "g.png").symlink_to("nowhere.png")
    if on_device is None:
        found = predict(folder, num_workers=num_workers)
    else:
        options = {"image_size": 32, "num_workers": num_workers, "decode_on_device": on_device}
        found = predict(folder, data=ImageNetDataModule, **options)
    assert list(found[0]) == ["image", "class", "probability", "agreement", "error"]
    assert [Path(row["image"]).name for row in found] == [name.name for name in sorted(folder.iterdir())]
    for row in found:
        broken = Path(row["image"]).stem in ("b_broken", "d_broken", "f", "g")
        assert broken == (row["class"] == row["probability"] == row["agreement"] == "")
        assert f"cannot decode the image {row['image']} (" in row["error"] if broken else row["error"] == ""
    assert "4 of 7 images could not be read: see the column error" in capsys.readouterr().out


@pytest.mark.parametrize("on_device", [None, False, True])
def test_strict_predict_ends_at_first_broken_image(tmp_path: Path, on_device: bool | None) -> None:
    folder = photos(tmp_path / "photos", "a.png", "b.png", "broken.png", "d.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("earlier")
    large = {"data": ImageNetDataModule, "image_size": 32, "decode_on_device": on_device}
    with pytest.raises(UsageError, match=f"cannot decode the image {folder / 'broken.png'}"):
        predict(folder, on_error="raise", **({} if on_device is None else large))
    assert (tmp_path / "out" / "predictions.csv").read_text() == "earlier"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]


def test_broken_image_ends_training(tmp_path: Path) -> None:
    photos(tmp_path / "val" / "a", "a.png")
    photos(tmp_path / "train" / "a", "a.png", "broken.png")
    data = ImageNetDataModule(tmp_path, image_size=32, num_workers=0, on_error="row")
    data.setup("fit")
    with pytest.raises(UsageError, match=r"cannot decode the image .*broken.png"):
        list(data.train_dataloader())


class Watching(BaselineModule):
    """Record the folder's state before every batch, and optionally stop there."""

    def __init__(self, folder: Path, error: BaseException | None = None) -> None:
        super().__init__("resnet8", num_classes=10)
        self.folder = folder
        self.error = error
        self.lines: list[int] = []

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.lines.append(next(self.folder.glob("predictions.csv.*.partial")).read_text().count("\n"))
        if self.error is not None and batch_idx == 1:
            raise self.error
        return super().predict_step(batch, batch_idx)


def test_predictions_are_written_batch_by_batch(tmp_path: Path) -> None:
    module = Watching(tmp_path / "out")
    assert len(predict(photos(tmp_path / "photos", "a.png", "b.png", "c.png", "d.png", "e.png"), module)) == 5
    assert module.lines == [1, 3, 5]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_interrupted_predict_keeps_earlier_predictions(tmp_path: Path, error: BaseException) -> None:
    folder = photos(tmp_path / "photos", "a.png", "b.png", "c.png")
    earlier = predict(folder)
    with pytest.raises((type(error), SystemExit)):
        predict(folder, Watching(tmp_path / "out", error))
    assert rows(tmp_path / "out") == earlier
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_prediction_writer_is_reusable(tmp_path: Path) -> None:
    writer, module = PredictionWriter(tmp_path / "out"), BaselineModule("resnet8", num_classes=10)
    for names in (["a.png", "b.png", "c.png"], ["a.png"]):
        folder = photos(tmp_path / str(len(names)), *names)
        trainer(callbacks=[writer]).predict(module, DigitsDataModule(num_workers=0, predict_dir=folder))
        assert len(rows(tmp_path / "out")) == len(names)


@pytest.mark.parametrize("target", ["precious.txt", "missing.txt"])
def test_predictions_are_not_written_through_links(tmp_path: Path, target: str) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").symlink_to(tmp_path / target)
    assert len(predict(photos(tmp_path / "photos", "a.png"))) == 1
    assert (tmp_path / "precious.txt").read_text() == "precious" and not (tmp_path / "missing.txt").exists()
    assert not (tmp_path / "out" / "predictions.csv").is_symlink()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_prediction_cells_are_safe_in_spreadsheets(tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{start}cmd"
    [row] = predict(photos(Path(name), "a.png"), names=[name] * 10)
    assert row["image"] == f"'{name}/a.png" and row["class"] == f"'{name}"
    [row] = predict(photos(Path("plain"), f"{start}b.png"), names=[f"fox{start}"] * 10)
    assert row["image"] == f"plain/{start}b.png" and row["class"] == f"fox{start}"  # not at the beginning


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff\xfe.png", b"\x83e\x83X\x83g.png"])
def test_non_utf_8_image_names_are_predicted(tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"photos\xe9") / "photos"
    photos(folder, "a.png", "broken.png")
    os.rename(folder / "a.png", os.fsencode(folder) + b"/" + name)
    os.rename(folder / "broken.png", os.fsencode(folder) + b"/broken" + name)
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    found = predict(folder)
    assert {os.fsencode(Path(row["image"]).name) for row in found} == {name, b"broken" + name}
    assert sum(row["error"] != "" for row in found) == 1
    terminal.flush()
    assert b"predictions are in" in terminal.buffer.getvalue()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_non_finite_probabilities_become_row_errors(
    tmp_path: Path, number: float, capsys: pytest.CaptureFixture[str]
) -> None:
    module = BaselineModule("resnet8", num_classes=10)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, number)
    found = predict(photos(tmp_path / "photos", "a.png", "b.png", "broken.png"), module)
    assert [row["error"] for row in found[:2]] == [NOT_FINITE] * 2 and "cannot decode" in found[2]["error"]
    assert {row["class"] + row["probability"] + row["agreement"] for row in found} == {""}
    printed = capsys.readouterr().out
    assert "1 of 3 images could not be read" in printed and "2 of 3 images have no finite probability" in printed


def test_predictions_without_errors_print_no_error_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict(photos(tmp_path / "photos", "a.png"))
    assert "images" not in capsys.readouterr().out.replace(str(tmp_path), "")


def test_json_lines_hold_most_probable_classes(tmp_path: Path) -> None:
    found = predict(photos(tmp_path / "photos", "a.png", "broken.png", "c.png"), names=[*"abcdefghij"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [row["image"] for row in found]
    assert [line.get("error", "") for line in lines] == [row["error"] for row in found]
    assert "top" not in lines[1]
    for line, row in zip(lines[::2], found[::2], strict=True):
        probabilities = [each["probability"] for each in line["top"]]
        assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
        assert line["class"] == line["top"][0]["class"] == row["class"]
        assert line["probability"] == probabilities[0] == float(row["probability"])


def test_predict_step_returns_sources_and_errors(tmp_path: Path) -> None:
    module = BaselineModule("resnet8", num_classes=10).eval()
    found = module.predict_step((torch.randn(2, 3, 16, 16), [("a", ""), ("b", "broken")]), 0)
    assert (found["source"], found["error"]) == (["a", "b"], ["", "broken"])
    assert [found[key].shape for key in ("class", "probability", "agreement")] == [(2,)] * 3
    assert module.predict_step((torch.randn(0, 3, 16, 16), []), 0)["source"] == []


def test_predict_batches_name_broken_images(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.png", "broken.png")
    [(images, sources)] = DigitsDataModule(predict_dir=folder, num_workers=0).predict_dataloader()
    assert images.shape == (2, 3, 16, 16) and images[1].max() == 0
    assert sources[0] == (str(folder / "a.png"), "") and sources[1][1].startswith("cannot decode")


class Tiny(pl.LightningModule):
    """Use no memory, so that only the writer and the loader are measured."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        images, sources = batch
        column = torch.zeros(len(images))
        columns = {"class": column.long(), "probability": column, "agreement": column}
        columns |= {"top_class": column[:, None].long(), "top_probability": column[:, None]}
        return {"source": [path for path, _ in sources], "error": [error for _, error in sources], **columns}


@pytest.mark.slow
def test_predicting_20_000_images_keeps_memory_flat(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "0.png")
    for number in range(1, 20_000):
        os.link(folder / "0.png", folder / f"{number}.png")
    predict(photos(tmp_path / "one" / "photos", "0.png"), Tiny())  # loads what only a first run loads
    assert grown_by(lambda: predict(folder, Tiny(), batch_size=64)) < 100


LOADERS: dict[str, Any] = {
    "images": lambda images, labels: images,
    "images in a tuple": lambda images, labels: TensorDataset(images),
    "with labels": lambda images, labels: TensorDataset(images, labels),
    "with names": lambda images, labels: list(zip(images, ["a", "b", "c", "d"], strict=True)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_loaders_of_users_are_predicted(tmp_path: Path, kind: str) -> None:
    images, labels = small.BATCH
    module = small.make("teacher")
    trainer = small.trainer(callbacks=[PredictionWriter(tmp_path)])
    batches = DataLoader(LOADERS[kind](images, labels), batch_size=3)
    trainer.predict(module, batches)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    names = ["a", "b", "c", "d"] if kind == "with names" else [f"image {number}" for number in range(4)]
    assert [row["image"] for row in rows] == names
    assert [int(row["class"]) for row in rows] == module.eval()(images).logits.argmax(1).tolist()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"image": torch.zeros(3, 8, 8)}] * 2, "returns dict, not a tensor of images"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2, "only data modules normalise"),
        (["a", "b"], "returns str, not a tensor of images"),
        ([torch.zeros(8, 8)] * 2, "not floating point"),
    ],
)
def test_loaders_without_images_are_refused_in_predict(items: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small.trainer().predict(small.make("baseline"), DataLoader(items, batch_size=2))


def test_predictions_onto_a_full_disk_raise_and_keep_the_earlier_ones(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "a.png", "b.png", "c.png", "d.png")
    earlier = predict(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
    try:
        with pytest.raises(UsageError, match=r"predictions\.csv: File too large"):
            predict(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert rows(tmp_path / "out") == earlier
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
