"""Test TinyImageNet as distributed and as commonly prepared."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.datasets import ImageFolder

from hsakd_pl.data import TinyImageNetDataModule
from hsakd_pl.errors import UsageError

Unpack = Callable[[str], Path]


@pytest.fixture
def original(unpack: Unpack) -> Path:
    return unpack("tiny-imagenet-mini.tar.gz") / "tiny-imagenet-200"


def prepare(original: Path, root: Path, inner: str) -> Path:
    """Copy the validation images, sorted into ``val/<wnid>/inner``; link to train."""
    root.mkdir()
    (root / "train").symlink_to(original / "train")
    (root / "val" / "images").mkdir(parents=True)  # left by the usual script
    for line in (original / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (root / "val" / wnid / inner).mkdir(parents=True, exist_ok=True)
        shutil.copy(original / "val" / "images" / name, root / "val" / wnid / inner / name)
    return root


def test_tinyimagenet_reads_distributed_layout(original: Path) -> None:
    before = sorted(original.rglob("*"))
    data = TinyImageNetDataModule(original.parent, num_workers=0)
    assert data.num_classes == 20
    data.prepare_data()
    data.setup()
    train, test = data.splits["train"], data.splits["test"]
    assert train.images.shape == (1000, 3, 64, 64) and torch.bincount(train.targets).tolist() == [50] * 20
    assert test.images.shape == (200, 3, 64, 64) and torch.bincount(test.targets).tolist() == [10] * 20
    published = ImageFolder(original / "train")
    assert data.class_names == published.classes and train.targets.tolist() == published.targets
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (64, 3, 32, 32)
    assert sorted(original.rglob("*")) == before  # nothing moved


@pytest.mark.parametrize("inner", ["", "images"])
def test_prepared_tinyimagenet_equals_distributed_layout(original: Path, tmp_path: Path, inner: str) -> None:
    splits = []
    for root in (original, prepare(original, tmp_path / "prepared", inner)):
        data = TinyImageNetDataModule(root)
        data.setup("test")
        splits.append(data.splits["test"])
    assert torch.equal(splits[0].images, splits[1].images)
    assert torch.equal(splits[0].targets, splits[1].targets)


def copy_val(original: Path, root: Path) -> Path:
    root.mkdir()
    (root / "train").symlink_to(original / "train")
    shutil.copytree(original / "val", root / "val")
    return root / "val" / "val_annotations.txt"


def test_wrong_annotations_raise_naming_file(original: Path, tmp_path: Path) -> None:
    annotations = copy_val(original, tmp_path / "copy")
    lines = annotations.read_text().splitlines(keepends=True)
    for broken, message in (
        (
            [*lines[:4], "val_0.JPEG\tn99999999\t0\t0\t9\t9\n", *lines[5:]],
            "line 5: 'n99999999' is not one of the",
        ),
        ([*lines[:2], "val_0.JPEG"], "line 3: '' is not one of the"),
        (lines[:9], "lists 9 images, .*images contains 200"),
        ([], "lists 0 images"),
    ):
        annotations.write_text("".join(broken))
        with pytest.raises(UsageError, match=f"val_annotations.txt,? {message}"):
            TinyImageNetDataModule(tmp_path / "copy").setup("test")
    annotations.unlink()
    with pytest.raises(UsageError, match=r"val_annotations\.txt is missing"):
        TinyImageNetDataModule(tmp_path / "copy").setup("test")


def test_wrong_annotation_line_raises_naming_line(original: Path, tmp_path: Path) -> None:
    annotations = copy_val(original, tmp_path / "copy")
    lines = annotations.read_text().splitlines()
    name, wnid, *_ = lines[3].split("\t")
    for line, message in (
        (lines[0], f"'{lines[0].split()[0]}' is listed twice or is not in .*images"),
        (f"{name}\t{lines[1].split()[1]}", ""),
        ("val_99999.JPEG\t" + wnid, "'val_99999.JPEG' is listed twice or is not in"),
        (f"../../train/{wnid}/images/{wnid}_0.JPEG\t{wnid}", "is listed twice or is not in"),
        (f"{name.lower()}\t{wnid}", "is listed twice or is not in"),
        (f"{name} {wnid} 0 0 9 9", "'' is not one of the classes in train/"),
        (f"{wnid}\t{name}", "is not one of the classes in train/"),
        (f"{name},{wnid},0,0", "'' is not one of the classes in train/"),
        ("\t", "lists 199 images, .*images contains 200"),
        (f"{name}\t{'n' * 100_000}", f"'{'n' * 40}' is not one of the classes"),
    ):
        annotations.write_text("\n".join([*lines[:3], line, *lines[4:]]))
        if not message:  # an image of another class is undetectable
            TinyImageNetDataModule(tmp_path / "copy").setup("test")
            continue
        with pytest.raises(UsageError, match=f"val_annotations.txt(, line 4:)? .*{message}") as error:
            TinyImageNetDataModule(tmp_path / "copy").setup("test")
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_annotations_in_another_encoding_raise_naming_file(original: Path, tmp_path: Path, encoding: str) -> None:
    annotations = copy_val(original, tmp_path / "copy")
    annotations.write_text(annotations.read_text(), encoding=encoding)
    with pytest.raises(UsageError, match=r"val_annotations.txt(, line 1:| is not UTF-8 text)"):
        TinyImageNetDataModule(tmp_path / "copy").setup("test")
    annotations.write_bytes("Löwe.JPEG\tn0\n".encode("latin1"))
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        TinyImageNetDataModule(tmp_path / "copy").setup("test")


def test_annotation_line_endings_and_hidden_files_change_nothing(original: Path, tmp_path: Path) -> None:
    annotations = copy_val(original, tmp_path / "copy")
    content = annotations.read_text()
    annotations.write_bytes(f"{content}\n \n".replace("\n", "\r\n").encode("utf-8-sig"))
    (tmp_path / "copy" / "val" / "images" / "._val_0.JPEG").write_bytes(b"what macOS leaves")
    splits = []
    for root in (original, tmp_path / "copy"):
        data = TinyImageNetDataModule(root)
        data.setup("test")
        splits.append(data.splits["test"])
    assert torch.equal(splits[0].images, splits[1].images) and torch.equal(splits[0].targets, splits[1].targets)


def test_broken_tinyimagenet_image_raises_naming_file(original: Path, tmp_path: Path) -> None:
    copy_val(original, tmp_path / "copy")
    image = next((tmp_path / "copy" / "val" / "images").iterdir())
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(UsageError, match=f"cannot decode the image {image}"):
        TinyImageNetDataModule(tmp_path / "copy").setup("test")


def test_missing_or_partial_tinyimagenet_folder_raises(original: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere/train is missing"):
        TinyImageNetDataModule(tmp_path / "nowhere").setup("fit")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train").symlink_to(original / "train")
    with pytest.raises(UsageError, match=r"half/val is missing"):
        TinyImageNetDataModule(tmp_path / "half").setup("test")


def test_failed_tinyimagenet_download_raises_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(*arguments: object, **options: object) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", corrupt)
    with pytest.raises(UsageError, match=r"TinyImageNet could not be obtained .*corrupted"):
        TinyImageNetDataModule(tmp_path, download=True).prepare_data()
