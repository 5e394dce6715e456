"""Test sets of LitData: conversion, the same batches as the source, exact resuming, and what is refused."""

import copy
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import pytorch_lightning as pl
import table_run
import torch
from programs import run_on_two
from small import Losses, documented, error_of
from table_run import losses

from hsakd_pl import BaselineModule, CIFAR100DataModule, DigitsDataModule, ImageFolderDataModule, LitDataModule, convert
from hsakd_pl.cli.main import main
from hsakd_pl.data import Split
from hsakd_pl.errors import UsageError

litdata = pytest.importorskip("litdata", reason="litdata is not installed")
streaming = pytest.importorskip("litdata.streaming", reason="litdata is not installed")

CIFAR = {"mean": CIFAR100DataModule.mean, "std": CIFAR100DataModule.std, "image_size": 32}
CLASSES = ["cat", "dog", "owl"]


def picture(seed: int, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture of noise, 12 x 16, as the content of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def photos(folder: Path, train: int = 24, test: int = 9) -> Path:
    """Write class folders of noise, as PNG and JPEG."""
    for split, count, seed in (("train", train, 0), ("test", test, 1000)):
        for number in range(count):
            kind = ("PNG", "JPEG")[number % 2]
            file = folder / split / CLASSES[number % 3] / f"{number:03}.{kind.lower()}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(seed + number, kind))
    return folder


def written(folder: Path, samples: list[Any], **options: Any) -> Path:
    """Let LitData write samples as a split."""
    writer = streaming.Cache(str(folder), **({"chunk_bytes": 4000} | options))
    for index, sample in enumerate(samples):
        writer[index] = sample
    writer.done()
    writer.merge()
    return folder


def samples(count: int, label: Callable[[int], Any] = lambda number: number % 3, seed: int = 0) -> list[dict[str, Any]]:
    return [{"image": picture(seed + number), "label": label(number)} for number in range(count)]


def foreign(folder: Path, **splits: list[Any]) -> Path:
    """Let LitData write a set of bytes and numbers, 24 images for training and 9 for testing, or other splits."""
    for name, content in ({"train": samples(24), "test": samples(9, seed=1000)} | splits).items():
        written(folder / name, content)
    return folder


def source(folder: Path, **options: Any) -> ImageFolderDataModule:
    return ImageFolderDataModule(folder, **(OPTIONS | options))


def small(path: Any, **options: Any) -> LitDataModule:
    return LitDataModule(path=path, **(OPTIONS | options))


OPTIONS: dict[str, Any] = {"image_size": 8, "batch_size": 6, "seed": 3, "num_workers": 0}


@pytest.fixture
def chunks(tmp_path: Path) -> Path:
    """Return a set that was converted from class folders in several chunks of a few pictures."""
    convert(source(photos(tmp_path / "photos")), tmp_path / "chunks")
    return split_up(tmp_path / "chunks")


def split_up(folder: Path, change: Callable[[bytes], bytes] = bytes) -> Path:
    """Write the splits of a converted set again in chunks of 5 images, since the option counts in MiB."""
    for name in ("train", "test"):
        split = folder / name
        index = json.loads((split / "index.json").read_text())
        labels = (split / "labels.npy").read_bytes()
        stored = litdata.StreamingDataset(str(split))
        content = [stored[number] for number in range(len(stored))]
        rows = [{"image": litdata.File(bytes=change(row["image"])), "label": row["label"]} for row in content]
        shutil.rmtree(split)
        written(split, rows, chunk_bytes=None, chunk_size=5)
        (split / "labels.npy").write_bytes(labels)
        edit(split / "index.json", lambda new, index=index: new.update(hsakd_pl=index["hsakd_pl"]))
    return folder


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of a JSON file in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_converted_cifar100_trains_with_bit_equal_losses(cifar_mini: Path, tmp_path: Path) -> None:
    assert convert(CIFAR100DataModule(cifar_mini), tmp_path / "chunks", chunk_mib=1)["test"] > 0
    options = {"limit_train_batches": 3, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    expected = losses(CIFAR100DataModule(cifar_mini, seed=3), **options)
    data = LitDataModule(path=tmp_path / "chunks", seed=3, **CIFAR)
    assert losses(data, **options) == expected
    plain = CIFAR100DataModule(cifar_mini, seed=3)
    for module in (plain, data):
        module.setup()
    assert data.class_names == plain.class_names and data.description == plain.description
    for split in ("train", "test"):
        assert torch.equal(data.resident(data.splits[split]), plain.splits[split].images)
        assert data.facts[split].labels == plain.facts[split].labels
    held_out = {"val_fraction": 0.2, "train_fraction": 0.5, "seed": 1}
    other = LitDataModule(path=tmp_path / "chunks", **held_out, **CIFAR)
    plain = CIFAR100DataModule(cifar_mini, **held_out)
    for module in (plain, other):
        module.setup("fit")
    assert torch.equal(other.resident(other.splits["val"]), plain.splits["val"].images)


def test_converted_folder_has_its_files_fingerprints_and_losses(tmp_path: Path, chunks: Path) -> None:
    folder, data = source(tmp_path / "photos"), small(chunks)
    for module in (folder, data):
        module.setup()
    assert data.fingerprints == folder.fingerprints and (data.mean, data.std) == (folder.mean, folder.std)
    pairs = zip(data.splits["train"].images, folder.splits["train"].images, strict=True)
    assert all(mine.content == Path(path).read_bytes() for mine, path in pairs)
    assert losses(small(chunks)) == losses(source(tmp_path / "photos"))


def test_litdata_reads_what_was_converted(chunks: Path) -> None:
    stored = litdata.StreamingDataset(str(chunks / "train"))
    data = small(chunks, mean="imagenet")
    data.setup("fit")
    images, labels = data.splits["train"]
    assert len(stored) == 24 and len(list((chunks / "train").glob("*.bin"))) == 5
    for index in (0, 7, 23):
        assert bytes(stored[index]["image"]) == images[index].content and stored[index]["label"] == labels[index]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_in_memory_are_converted_without_loss(tmp_path: Path, channels: int) -> None:
    convert(DigitsDataModule(channels=channels) if channels == 1 else Noise(channels), tmp_path / "set")
    data = small(tmp_path / "set", channels=channels, mean=[0.5] * channels, std=[0.5] * channels, image_size=16)
    expected = DigitsDataModule(channels=1) if channels == 1 else Noise(channels)
    for module in (data, expected):
        module.setup("test")
    assert torch.equal(data.resident(data.splits["test"]), expected.splits["test"].images)


class Noise(DigitsDataModule):
    """Noise of any number of channels in place of digits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mean = self.std = (0.5,) * channels

    def read(self, train: bool) -> Split:
        generator = torch.Generator().manual_seed(int(train))
        images = torch.randint(256, (20, self.channels, 16, 16), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(20) % 10)


@pytest.mark.parametrize(
    ("augmentation", "num_workers", "mixed_chunks"),
    [
        ("crop", 0, 0),
        ("resized_crop", 2, 2),
        pytest.param("crop", 0, 2, marks=pytest.mark.nightly),
        pytest.param("resized_crop", 2, 0, marks=pytest.mark.nightly),
    ],
)
def test_chunks_resume_bitwise_inside_an_epoch(
    tmp_path: Path, chunks: Path, augmentation: str, num_workers: int, mixed_chunks: int
) -> None:
    options = {"augmentation": augmentation, "resident_mib": 0, "mean": "imagenet", "mixed_chunks": mixed_chunks}
    whole = _fit(small(chunks, num_workers=num_workers, **options), tmp_path / "whole", None)
    checkpoint = tmp_path / "whole" / "step=5.ckpt"
    assert len(whole.values) == 8
    for others in (num_workers, 2 - num_workers):  # the same and another number of workers
        resumed = _fit(small(chunks, num_workers=others, **options), tmp_path / f"resumed{others}", checkpoint)
        assert resumed.values == whole.values[5:]


def _fit(data: LitDataModule, folder: Path, checkpoint: Path | None) -> Losses:
    """Train for two epochs of four batches, saving after each step."""
    torch.manual_seed(0)
    recorder = Losses()
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[recorder, saving], num_sanity_val_steps=0, limit_val_batches=0, **options
    )
    trainer.fit(BaselineModule("resnet8", num_classes=3, lr=0.01), data, ckpt_path=checkpoint, weights_only=False)
    return recorder


def test_epoch_is_not_resumed_with_other_mixing(tmp_path: Path, chunks: Path) -> None:
    _fit(small(chunks, mean="imagenet", mixed_chunks=2), tmp_path / "run", None)
    with pytest.raises(UsageError, match=r"began with mixed_chunks 2, not 0"):
        _fit(small(chunks, mean="imagenet"), tmp_path / "resumed", tmp_path / "run" / "step=5.ckpt")


@pytest.mark.slow
def test_mixed_chunks_resume_bitwise_on_two_processes_with_workers(tmp_path: Path, chunks: Path) -> None:
    options = {"num_workers": 1, "resident_mib": 0, "mixed_chunks": 2}
    run_on_two(table_run.main, "LitDataModule", str(chunks), str(tmp_path), json.dumps(options))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for found in ranks:
        assert len(found["whole"]) == 8 and found["resumed"] == found["whole"][5:]
        weights, again = found["weights"]
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert ranks[0]["whole"] != ranks[1]["whole"]  # each has half of a batch


def test_mixed_chunks_visits_each_image_once_and_few_chunks_at_a_time(chunks: Path) -> None:
    data = small(chunks, mean="imagenet", resident_mib=0, mixed_chunks=2)
    data.setup("fit")
    orders = []
    for epoch in (0, 1):
        sampler = data.train_dataloader().sampler
        sampler.set_epoch(epoch)
        orders.append(torch.cat(list(sampler)))
    first, second = orders
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(24)) and first.tolist() != second.tolist()
    visited = (first // 5).tolist()  # chunks of 5 images
    starts = [visited.index(chunk) for chunk in range(5)]
    ends = [24 - visited[::-1].index(chunk) for chunk in range(5)]
    open_at = [sum(start <= step < end for start, end in zip(starts, ends, strict=True)) for step in range(24)]
    assert max(open_at) <= 2


@pytest.mark.slow
def test_litdata_own_order_resumes_exactly_until_the_epoch_ends(tmp_path: Path) -> None:
    written(tmp_path / "set", samples(120, label=lambda number: number), chunk_bytes=None, chunk_size=10)

    def epochs(num_workers: int, state: Any = None, stop: int | None = None) -> tuple[list[list[int]], Any]:
        dataset = litdata.StreamingDataset(str(tmp_path / "set"), shuffle=True, transform=_label)
        loader = litdata.StreamingDataLoader(dataset, batch_size=6, num_workers=num_workers)
        if state is not None:
            loader.load_state_dict(state)
        batches = []
        for _ in (0, 1):
            for batch in loader:
                batches.append(batch.tolist())
                if len(batches) == stop:
                    return batches, loader.state_dict()
        return batches, None

    whole, _ = epochs(2)
    first, state = epochs(2, stop=7)
    same, _ = epochs(2, copy.deepcopy(state))
    other, _ = epochs(0, copy.deepcopy(state))
    assert first + same == whole and len(whole) == 40
    assert (first + other)[:20] == whole[:20] and (first + other)[20:] != whole[20:]


def _label(sample: dict[str, Any]) -> int:
    return sample["label"]


def test_workers_are_handed_no_pictures(chunks: Path) -> None:
    data = small(chunks, mean="imagenet", resident_mib=0)
    data.setup("fit")
    assert len(pickle.dumps(data.splits["train"].images.fetch)) < 2000 < sum(len(picture(n)) for n in range(24))


def test_chunks_of_a_url_are_downloaded_when_they_are_used(tmp_path: Path, chunks: Path) -> None:
    here, there = small(chunks, resident_mib=0), small(f"local:{chunks}", cache_dir=tmp_path / "c", resident_mib=0)
    for data in (here, there):
        data.mean = data.std = (0.5, 0.5, 0.5)
        data.setup()
    assert there.fingerprints == here.fingerprints and there.class_names == CLASSES
    assert not list((tmp_path / "c").rglob("*.bin"))
    for mine, other in zip(there.train_dataloader(), here.train_dataloader(), strict=True):
        assert all(map(torch.equal, mine, other))
    assert len(list((tmp_path / "c").rglob("*.bin"))) == 5  # of the training split
    assert not [file for file in (tmp_path / "c").rglob("*") if file.suffix == ".download"]


def test_url_without_a_set_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"local:.*/train/index.json cannot be downloaded.*check the URL") as raised:
        small(f"local:{tmp_path}", cache_dir=tmp_path / "c").setup()
    assert "\n" not in str(raised.value)


def test_storage_that_cannot_be_reached_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    nowhere = {"endpoint_url": "http://127.0.0.1:9"}  # nothing listens there
    with pytest.raises(
        UsageError, match=r"s3://pictures/train/index.json cannot be downloaded .*127\.0\.0\.1"
    ) as raised:
        small("s3://pictures", storage_options=nowhere, cache_dir=tmp_path).setup()
    assert "\n" not in str(raised.value)


def foreign_forms() -> dict[str, list[Any]]:
    """Return samples as people write them, of the labels 0, 1, 2."""
    rows = samples(24)
    opened = [PIL.Image.open(io.BytesIO(row["image"])) for row in rows]
    return {
        "bytes": rows,
        "a file": [{"image": litdata.File(bytes=row["image"]), "label": row["label"]} for row in rows],
        "typed bytes": [{"image": litdata.Image(bytes=row["image"]), "label": row["label"]} for row in rows],
        "a tuple": [(row["image"], row["label"]) for row in rows],
        "an opened PNG": [{"image": image, "label": row["label"]} for image, row in zip(opened, rows, strict=True)],
        "further columns": [{"index": number, "size": 0.5} | row for number, row in enumerate(rows)],
    }


@pytest.mark.parametrize("form", foreign_forms())
def test_set_that_litdata_wrote_is_read(tmp_path: Path, form: str) -> None:
    content = foreign_forms()[form]
    label = "1" if form == "a tuple" else "label" if form == "further columns" else None
    data = small(foreign(tmp_path / "set", train=content, test=content[:9]), mean="imagenet", label_column=label)
    data.setup()
    plain = small(foreign(tmp_path / "plain", test=samples(9)), mean="imagenet")
    plain.setup()
    assert data.class_names == ["0", "1", "2"] == plain.class_names
    for mine, other in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert all(map(torch.equal, mine, other))


def test_labels_of_text_and_with_gaps_are_numbered_by_name(tmp_path: Path) -> None:
    for name, labels, names in (("text", ["owl", "cat", "dog"], CLASSES), ("gaps", [10, 2, 7], ["2", "7", "10"])):
        content = samples(24, lambda number, labels=labels: labels[number % 3])
        data = small(foreign(tmp_path / name, train=content, test=content[:9]), mean="imagenet")
        data.setup()
        assert data.class_names == names
        assert [names[label] for label in data.splits["train"].targets] == [str(row["label"]) for row in content]


def test_undivided_set_holds_images_out(tmp_path: Path) -> None:
    data = small(written(tmp_path / "set", samples(24)), mean="imagenet", val_fraction=0.25)
    data.setup()
    assert [len(data.splits[name].targets) for name in ("train", "val", "test")] == [18, 6, 6]
    with pytest.raises(UsageError, match=r"no split to validate and test on: set .*val_fraction"):
        small(tmp_path / "set").setup()


def test_set_without_labels_is_a_source_of_unlabelled_images(tmp_path: Path, chunks: Path) -> None:
    pictures = written(tmp_path / "set", [{"image": row["image"]} for row in samples(24)])
    data = small(chunks, mean="imagenet", unlabelled=small(pictures))
    data.setup("fit")
    assert data.facts["unlabelled"].images == 24
    images = [images for images, _ in data.train_dataloader()]
    assert [len(batch) for batch in images] == [12] * 4
    edit(pictures / "index.json", lambda index: index["chunks"].clear())
    with pytest.raises(UsageError, match=r"unlabelled: LitDataModule has no training images: choose other data"):
        small(chunks, mean="imagenet", unlabelled=small(pictures)).setup("fit")


def test_pickled_values_are_never_loaded(tmp_path: Path) -> None:
    content = [row | {"other": Touch(tmp_path / "touched")} for row in samples(24)]
    data = small(foreign(tmp_path / "set", train=content, test=content[:9]), mean="imagenet")
    data.setup()
    assert list(data.train_dataloader()) and not (tmp_path / "touched").exists()
    litdata.StreamingDataset(str(tmp_path / "set" / "train"))[0]
    assert (tmp_path / "touched").exists()


class Touch:
    """Create a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.open, (str(self.path), os.O_CREAT)


def test_pictures_that_litdata_may_have_encoded_anew_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = [picture(number, "JPEG", quality=95) for number in range(24)]
    rows = [
        {"image": PIL.Image.open(io.BytesIO(content)), "label": number % 3} for number, content in enumerate(contents)
    ]
    data = small(foreign(tmp_path / "set", train=rows, test=rows[:9]), mean="imagenet")
    with caplog.at_level("INFO"):
        data.setup()
    assert data.splits["train"].images[0].content != contents[0]
    assert "may have encoded pictures of" in caplog.text and "hsakd convert stores files as they are" in caplog.text


def _truncated(folder: Path) -> Path:
    chunk = max((foreign(folder) / "train").glob("*.bin"))
    chunk.write_bytes(chunk.read_bytes()[:-100])
    return folder


def _without_chunk(folder: Path) -> Path:
    min((foreign(folder) / "test").glob("*.bin")).unlink()
    return folder


def _edited(folder: Path, change: Callable[[Any], Any]) -> Path:
    edit(foreign(folder) / "train" / "index.json", change)
    return folder


def _interrupted(folder: Path) -> Path:
    (foreign(folder) / "train" / "index.json").unlink()
    return folder


def _float_labels(folder: Path) -> Path:
    return foreign(folder, train=[{"image": picture(number), "label": number / 2} for number in range(12)])


BAD_INPUT: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "no set": (lambda folder: photos(folder), {}, r"path: .* is not a set of LitData, .*index\.json.*hsakd convert"),
    "no folder": (lambda folder: folder, {}, r"path: .* is not a folder, or does not exist"),
    "interrupted by LitData": (_interrupted, {}, r"train has chunks, but no index\.json: its conversion was interr"),
    "missing image column": (
        foreign,
        {"image_column": "picture"},
        r"image_column: .* no column picture: .*label",
    ),
    "missing label column": (
        foreign,
        {"label_column": "labels"},
        r"label_column: .*no column labels: did you mean la",
    ),
    "image column of another type": (
        foreign,
        {"image_column": "label"},
        r"image_column: the column label of .* has",
    ),
    "labels of floats": (_float_labels, {}, r"label_column: .* no column of labels .*label \(float\)"),
    "truncated chunk": (_truncated, {}, r"chunk-0-\d+\.bin is truncated or damaged .*convert it again"),
    "missing chunk": (_without_chunk, {}, r"test/chunk-0-0\.bin: No such file"),
    "empty split": (
        lambda folder: _edited(folder, lambda content: content["chunks"].clear()),
        {},
        r"the split train of .* is empty",
    ),
    "broken index": (
        lambda folder: _edited(folder, lambda content: content.pop("config")),
        {},
        r"train/index\.json is not an index of images by LitData \(config is missing\)",
    ),
    "chunk elsewhere": (
        lambda folder: _edited(folder, lambda content: content["chunks"][0].update(filename="../x.bin")),
        {},
        r"is not an index of images by LitData \(a chunk is in another folder\)",
    ),
    "compressed": (
        lambda folder: _edited(folder, lambda content: content["config"].update(compression="zstd")),
        {},
        r"has compression \(zstd\), which is not supported: write it without",
    ),
    "nested samples": (
        lambda folder: foreign(folder, train=[{"image": picture(0), "about": {"label": 1}}] * 6),
        {},
        r"is not an index of images by LitData \(its samples are not plain dictionaries or tuples\)",
    ),
    "class of the test split alone": (
        lambda folder: foreign(folder, train=samples(12, lambda number: number % 2)),
        {},
        r"the split test of .* has the 1 class .*2.*, of which the training split has no image",
    ),
    "images without a label": (
        lambda folder: foreign(folder, train=samples(12, lambda number: None if number == 3 else number % 3)),
        {},
        r"1 image in the split train of .* have no label",
    ),
    "one class": (
        lambda folder: foreign(folder, train=samples(12, lambda _: 0)),
        {},
        r"has 1 class: a classifier needs at least two",
    ),
    "misspelt split": (foreign, {"train_split": "trian"}, r"train_split: .* no split trian: did you mean train\?"),
}


def _read(data: LitDataModule) -> None:
    """Read a set as the command line does: first its classes."""
    assert data.num_classes
    data.setup()


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_set_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    write, options, message = BAD_INPUT[case]
    data = small(write(tmp_path / "set"), mean="imagenet", **options)
    with pytest.raises(UsageError, match=message) as raised:
        _read(data)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_converted_set_that_was_changed_is_refused(tmp_path: Path, chunks: Path) -> None:
    split_up(chunks, encoded_anew)
    with pytest.raises(UsageError, match=r"train of .* is not the one that was converted, it differs in pictures"):
        small(chunks, mean="imagenet").setup("fit")
    edit(chunks / "train" / "index.json", lambda content: content["hsakd_pl"].update(classes=["a", "b", "c"]))
    with pytest.raises(UsageError, match=r"the splits test, train of .* are of different sets: convert"):
        small(chunks, mean="imagenet").setup("fit")
    (chunks / "test" / "labels.npy").write_bytes((chunks / "train" / "labels.npy").read_bytes())
    with pytest.raises(UsageError, match=r"labels.npy has not the labels of 9 images \(it has int64 \(24,\)\)"):
        small(chunks / "test", mean="imagenet", val_fraction=0.4).setup("fit")


def encoded_anew(content: bytes) -> bytes:
    file = io.BytesIO()
    PIL.Image.open(io.BytesIO(content)).save(file, "JPEG", quality=75)
    return file.getvalue()


def test_broken_picture_is_named_by_the_conversion(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    (folder / "train" / "cat" / "005.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UsageError, match=r"cannot decode the image .*train/cat/005.png"):
        convert(source(folder), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_picture_that_breaks_later_is_named(chunks: Path) -> None:
    split = chunks / "train"
    [chunk, *_] = sorted(split.glob("*.bin"))
    content = chunk.read_bytes()
    position = content.index(b"IDAT")
    chunk.write_bytes(content[:position] + b"XXXX" + content[position + 4 :])
    edit(split / "index.json", lambda index: index.pop("hsakd_pl"))
    edit(chunks / "test" / "index.json", lambda index: index.pop("hsakd_pl"))
    data = small(chunks, mean="imagenet", resident_mib=0)
    data.setup("fit")
    with pytest.raises(UsageError, match=r"cannot decode the image .*chunks, train\[\d+\]"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_fraction": 0.5}, "train_fraction: a data set is converted whole"),
        ({"val_fraction": 0.5}, "val_fraction: a data set is converted whole"),
        ({"unlabelled": "photos"}, "unlabelled: a data set is converted whole"),
    ],
)
def test_conversion_of_a_part_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(source(photos(tmp_path / "photos"), **options), tmp_path / "set")


def test_existing_folder_is_never_written(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UsageError, match=r"FOLDER: .*set exists: remove it, or name another folder"):
        convert(DigitsDataModule(), tmp_path / "set")
    assert not list((tmp_path / "set").iterdir())


def test_missing_library_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: Path) -> None:
    small(chunks, mean="imagenet").setup()
    for name in [name for name in sys.modules if name.partition(".")[0] == "litdata"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "litdata", None)
    small(chunks, mean="imagenet").setup()  # a folder is read without it
    for act in (lambda: convert(DigitsDataModule(), tmp_path / "set"), small(f"local:{chunks}").setup):
        with pytest.raises(UsageError, match=r"need litdata: pip install 'hsakd_pl\[litdata\]'"):
            act()


@pytest.mark.slow
def test_killed_conversion_leaves_nothing_that_passes_for_whole(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", train=3000, test=3)
    command = [sys.executable, "-m", "hsakd_pl", "convert", str(tmp_path / "set"), "--chunk_mib", "1"]
    command += ["--data", "ImageFolderDataModule", "--data.root", str(folder)]
    process = subprocess.Popen(command)
    while process.poll() is None and not list(tmp_path.glob("set.*.partial/train/*.bin")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    [partial] = tmp_path.glob("set.*.partial")
    assert not (tmp_path / "set").exists()
    with pytest.raises(UsageError, match=r"is what an interrupted conversion left: convert the data again"):
        small(partial).setup()
    main(command[3:])
    assert not list(tmp_path.glob("set.*")) and len(small(tmp_path / "set").values("train")) == 3000


@pytest.mark.slow
def test_command_line_converts_trains_tests_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    conversion, fit, test, export = documented("LitDataModule")
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
    main(conversion)
    main([*fit, *quiet])
    main(test)
    main([*export, "--formats", "safetensors"])
    assert "cat" in (tmp_path / "exported-chunks" / "config.json").read_text()
    assert "pictures" in (tmp_path / "runs" / "chunks" / "result.json").read_text()
    assert error_of(capsys, lambda: main(["convert", "other"])).startswith("convert: it needs a data set")
    assert error_of(capsys, lambda: main(conversion)).startswith("FOLDER: chunks exists")


def test_adopted_description_needs_no_set(tmp_path: Path, chunks: Path) -> None:
    description = small(chunks, mean="imagenet").description
    data = small(tmp_path / "gone", predict_dir=tmp_path)
    data.adopt(description)
    assert data.num_classes == 3 and data.label_names() == CLASSES
