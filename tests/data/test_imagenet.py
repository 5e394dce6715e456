"""Test class folders of photographs, and the original archives."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import ImageFolder
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.datasets.utils import calculate_md5
from torchvision.transforms import v2

from hsakd_pl.data import ImageNetDataModule
from hsakd_pl.errors import UsageError

Unpack = Callable[[str], Path]


@pytest.fixture
def mini(unpack: Unpack) -> Path:
    return unpack("imagenet-mini.tar.gz") / "imagenet-mini"


def test_imagenet_reads_class_folders(mini: Path) -> None:
    data = ImageNetDataModule(mini, batch_size=50, image_size=64, num_workers=1)
    assert data.num_classes == 20 and ImageNetDataModule(mini / "nowhere").num_classes == 1000
    data.setup()
    published = ImageFolder(mini / "train")
    assert data.class_names == published.classes
    assert data.splits["train"].images == [path for path, _ in published.samples]
    assert data.splits["train"].targets.tolist() == published.targets
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (50, 3, 64, 64) and images.dtype == torch.uint8 and labels.dtype == torch.int64


def test_imagenet_evaluation_transform_equals_torchvision(mini: Path) -> None:
    data = ImageNetDataModule(mini, batch_size=20, num_workers=0)
    data.setup("test")
    images, labels = next(iter(data.test_dataloader()))
    recipe = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor()])
    published = [ImageFolder(mini / "val", recipe)[number] for number in range(20)]
    assert torch.equal(images, torch.stack([image for image, _ in published]))
    assert labels.tolist() == [label for _, label in published]


def folders(root: Path, **images: int) -> Path:
    for name, count in images.items():
        (root / name.replace("_", "/")).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 30)).save(root / name.replace("_", "/") / f"{number}.jpg")
    return root


def test_missing_or_partial_imagenet_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere/train is missing.*--data.init_args.root"):
        ImageNetDataModule(tmp_path / "nowhere").setup("fit")
    with pytest.raises(UsageError, match=r"no image found for the classes b"):
        ImageNetDataModule(folders(tmp_path / "empty", train_a=1, train_b=0)).setup("fit")
    with pytest.raises(UsageError, match=r"val/c is not one of the classes"):
        ImageNetDataModule(folders(tmp_path / "more", train_a=1, val_a=1, val_c=1)).setup("test")
    (folders(tmp_path / "tars", train_a=1) / "train" / "b.tar").touch()
    with pytest.raises(UsageError, match=r"tars/train still contains archives"):
        ImageNetDataModule(tmp_path / "tars").setup("fit")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in members.items():
            add(tar, name, content)


def test_imagenet_reads_original_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack two classes from archives in the original layout with torchvision."""
    wnids, jpeg, root = ("n01", "n02"), io.BytesIO(), tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (40, 30)).save(jpeg, "JPEG")
    synsets = [(1, "n01", "tench, fish", "", 0), (2, "n02", "drake", "", 0)]
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    matrix = io.BytesIO()
    savemat(matrix, {"synsets": np.array(synsets, dtype=kinds)})
    names = {split: root / name for split, (name, _) in ARCHIVE_META.items()}
    devkit = {"meta.mat": matrix.getvalue(), "ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n"}
    archive(names["devkit"], {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in devkit.items()})
    for wnid in wnids:
        archive(tmp_path / f"{wnid}.tar", {f"{wnid}_{number}.JPEG": jpeg.getvalue() for number in range(3)})
    archive(names["train"], {f"{wnid}.tar": (tmp_path / f"{wnid}.tar").read_bytes() for wnid in wnids})
    for split in ("devkit", "train"):
        monkeypatch.setitem(ARCHIVE_META, split, (names[split].name, calculate_md5(names[split])))

    with pytest.raises(UsageError, match=r"ImageNet could not be obtained .*ILSVRC2012_img_val.tar is not present"):
        ImageNetDataModule(root).prepare_data()
    archive(names["val"], {f"ILSVRC2012_val_{number:08}.JPEG": jpeg.getvalue() for number in (1, 2, 3)})
    monkeypatch.setitem(ARCHIVE_META, "val", (names["val"].name, calculate_md5(names["val"])))
    data = ImageNetDataModule(root, num_workers=0)
    data.prepare_data()
    data.setup()
    assert data.class_names == ["n01", "n02"]
    assert data.splits["train"].targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.splits["test"].targets.tolist() == [0, 1, 1]
