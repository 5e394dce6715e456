"""Test STL-10's binary layout."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from hsakd_pl.data import STL10DataModule
from hsakd_pl.errors import UsageError

Unpack = Callable[[str], Path]


@pytest.fixture
def copy(unpack: Unpack, tmp_path: Path) -> Path:
    shutil.copytree(unpack("stl10-mini.tar.gz") / "stl10-mini" / "stl10_binary", tmp_path / "stl10_binary")
    return tmp_path


def test_stl10_reads_images_labels_and_classes(unpack: Unpack) -> None:
    root = unpack("stl10-mini.tar.gz") / "stl10-mini"
    data = STL10DataModule(root, batch_size=32, num_workers=0)
    data.prepare_data()
    data.setup()
    train = data.splits["train"]
    assert train.images.shape == (200, 3, 96, 96) and data.splits["test"].images.shape == (100, 3, 96, 96)
    assert torch.bincount(train.targets).tolist() == [20] * 10
    assert data.class_names[:2] == ["bullet_train", "goose"] and data.image_size == 32
    raw = np.fromfile(root / "stl10_binary" / "train_X.bin", np.uint8)
    y, x = 5, 70  # planes are stored column by column
    assert train.images[3, 1, y, x] == raw[(3 * 3 + 1) * 96 * 96 + x * 96 + y]
    rows_differ, columns_differ = (train.images[:20].float().diff(dim=dim).abs().mean() for dim in (2, 3))
    assert abs(rows_differ - columns_differ) < 3  # a photograph, not a scrambled one


def test_stl10_crops_training_and_resizes_evaluation(unpack: Unpack) -> None:
    data = STL10DataModule(unpack("stl10-mini.tar.gz") / "stl10-mini", batch_size=50, num_workers=0, seed=0)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (50, 3, 32, 32) and labels.dtype == torch.int64
    evaluated = torch.cat([images for images, _ in data.val_dataloader()])
    assert torch.equal(evaluated, resize(data.splits["test"].images, [32, 32], antialias=True))


def test_stl10_held_out_images_are_resized(unpack: Unpack) -> None:
    data = STL10DataModule(unpack("stl10-mini.tar.gz") / "stl10-mini", val_fraction=0.1, image_size=24)
    data.setup("fit")
    [(images, labels)] = data.val_dataloader()
    assert images.shape == (20, 3, 24, 24) and sorted(labels.tolist()) == [c for c in range(10) for _ in "ab"]


def test_broken_stl10_files_raise_naming_them(copy: Path) -> None:
    pixels, labels = copy / "stl10_binary" / "train_X.bin", copy / "stl10_binary" / "train_y.bin"
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=r"train_X.bin has 5529599 bytes, not 27648 for each of 200 labels"):
        STL10DataModule(copy).setup("fit")
    pixels.write_bytes(whole)
    labels.write_bytes(bytes([0]) + labels.read_bytes()[1:])
    with pytest.raises(UsageError, match=r"train_y.bin contains labels outside 1..10"):
        STL10DataModule(copy).setup("fit")
    labels.unlink()
    with pytest.raises(UsageError, match=r"STL-10 lacks .*train_y.bin: .*download true"):
        STL10DataModule(copy).setup("fit")
    with pytest.raises(UsageError, match=r"nowhere"):
        STL10DataModule(copy / "nowhere").setup("fit")


def test_stl10_file_sizes_are_checked_before_reading(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "fromfile", lambda *_: pytest.fail("it was read"))
    folder = copy / "stl10_binary"
    with (folder / "train_X.bin").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match=r"train_X.bin has 1099511627776 bytes, not 27648 for each of 200 labels"):
        STL10DataModule(copy).setup("fit")
    for name in ("test_X.bin", "test_y.bin"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"test_X.bin has 0 bytes, not 27648 for each of 0 labels"):
        STL10DataModule(copy).setup("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ndog\n", "gives class names as a list of 2, not as a list of 10 strings"),
        (b"", "gives class names as a list of 0, not"),
        ("\n".join("abcdefghij").encode("utf-16"), "is not UTF-8 text"),
        ("\n".join("äbcdefghij").encode("latin1"), "is not UTF-8 text"),
        (bytes(range(256)), "is not UTF-8 text"),
        ("\n".join("abcdefghij").encode("utf-16-le"), "is not UTF-8 text"),
    ],
)
def test_wrong_stl10_class_names_raise_naming_file(copy: Path, content: bytes, message: str) -> None:
    (copy / "stl10_binary" / "class_names.txt").write_bytes(content)
    for stage in ("fit", "predict"):
        with pytest.raises(UsageError, match=f"class_names.txt {message}"):
            STL10DataModule(copy).setup(stage)


def test_stl10_class_names_of_any_editor_are_read(copy: Path) -> None:
    content = "\r\n".join(["polar bear", *"bcdefghi", "Löwe", ""]).encode("utf-8-sig")
    (copy / "stl10_binary" / "class_names.txt").write_bytes(content)
    names = STL10DataModule(copy).read_class_names()
    assert (names[0], names[9], len(names)) == ("polar bear", "Löwe", 10)
