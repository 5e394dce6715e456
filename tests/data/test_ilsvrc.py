"""Test ImageNet as Kaggle and the organisers distribute it: the same samples in every layout, without moving a file."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from scipy.io import savemat
from small import Losses, trainer

from hsakd_pl import BaselineModule, ImageNetDataModule
from hsakd_pl.data.ilsvrc import DEVKIT, GROUND_TRUTH, META, SOLUTION, SYNSETS, find_words
from hsakd_pl.errors import UsageError

Sample = tuple[str, str, Path]  # name, class and file of a validation image


@pytest.fixture(scope="module")
def mini(unpack: Callable[[str], Path]) -> Path:
    return unpack("imagenet-mini.tar.gz") / "imagenet-mini"


@pytest.fixture(scope="module")
def samples(mini: Path) -> list[Sample]:
    """Return the validation images in an order that is mixed over the classes, with names as in ILSVRC2012."""
    files = sorted((mini / "val").rglob("*.JPEG"))
    order = np.random.default_rng(0).permutation(len(files))
    return [
        (f"ILSVRC2012_val_{number:08}", files[index].relative_to(mini / "val").parts[0], files[index])
        for number, index in enumerate(order, 1)
    ]


def class_form(root: Path, mini: Path, samples: list[Sample]) -> Path:
    for name, wnid, file in samples:
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / "val" / wnid / f"{name}.JPEG")
    (root / "train").symlink_to(mini / "train")
    return root


def flat(folder: Path, mini: Path, samples: list[Sample]) -> None:
    (folder / "val").mkdir(parents=True)
    for name, _, file in samples:
        shutil.copy(file, folder / "val" / f"{name}.JPEG")
    (folder / "train").symlink_to(mini / "train")


def kaggle(root: Path, mini: Path, samples: list[Sample]) -> Path:
    """Write Kaggle's layout; its list is sorted otherwise than the files."""
    flat(root / "ILSVRC" / "Data" / "CLS-LOC", mini, samples)
    rows = [f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for name, wnid, _ in reversed(samples)]
    (root / SOLUTION).write_text("ImageId,PredictionString\n" + "".join(rows))
    words = [f"{wnid} name of {wnid}, {wnid[-3:]}\n" for wnid in sorted({wnid for _, wnid, _ in samples})]
    (root / SYNSETS).write_text("".join(words))
    return root


def devkit(root: Path, mini: Path, samples: list[Sample]) -> Path:
    """Write the development kit next to the folders; its numbers are in another order than the classes."""
    flat(root, mini, samples)
    wnids = sorted({wnid for _, wnid, _ in samples}, reverse=True)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    synsets = [(number, wnid, f"name of {wnid}, {wnid[-3:]}", "", 0) for number, wnid in enumerate(wnids, 1)]
    data = root / DEVKIT / "data"
    data.mkdir(parents=True)
    savemat(data / META, {"synsets": np.array(synsets, dtype=kinds)})
    (data / GROUND_TRUTH).write_text("".join(f"{wnids.index(wnid) + 1}\n" for _, wnid, _ in samples))
    return root


def packed_devkit(root: Path, mini: Path, samples: list[Sample]) -> Path:
    devkit(root, mini, samples)
    with tarfile.open(root / f"{DEVKIT}.tar.gz", "w:gz") as tar:
        tar.add(root / DEVKIT, DEVKIT)
    shutil.rmtree(root / DEVKIT)
    return root


LAYOUTS = {"kaggle": kaggle, "devkit": devkit, "packed devkit": packed_devkit}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_batches_as_class_folders(
    layout: str, tmp_path: Path, mini: Path, samples: list[Sample]
) -> None:
    root = LAYOUTS[layout](tmp_path / "data", mini, samples)
    before = sorted(tmp_path.rglob("*"))
    options = {"image_size": 32, "num_workers": 0, "batch_size": 50, "seed": 0}
    data, expected = (
        ImageNetDataModule(folder, **options) for folder in (root, class_form(tmp_path / "classes", mini, samples))
    )
    for module in (data, expected):
        module.prepare_data()
        module.setup()
    assert data.fingerprints == expected.fingerprints and data.description == expected.description
    assert [Path(path).name for path in data.splits["test"].images] == [
        Path(path).name for path in expected.splits["test"].images
    ]
    for mine, other in zip(data.test_dataloader(), expected.test_dataloader(), strict=True):
        assert all(map(torch.equal, mine, other))
    [mine], [other] = ([next(iter(module.train_dataloader()))] for module in (data, expected))
    assert all(map(torch.equal, mine, other))
    assert [path for path in sorted(tmp_path.rglob("*")) if "classes" not in path.parts] == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_kaggles_layout_resumes_bitwise_inside_an_epoch(
    num_workers: int, tmp_path: Path, mini: Path, samples: list[Sample]
) -> None:
    root = kaggle(tmp_path, mini, samples)

    def fit(folder: Path, checkpoint: Path | None = None) -> list[float]:
        torch.manual_seed(0)
        recorder = Losses()
        saving = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        data = ImageNetDataModule(root, image_size=32, batch_size=8, num_workers=num_workers)
        run = trainer(folder, 2, limit_train_batches=3, limit_val_batches=0, callbacks=[recorder, saving])
        run.fit(BaselineModule("resnet8", num_classes=20, lr=0.01), data, ckpt_path=checkpoint, weights_only=False)
        return recorder.values

    whole = fit(tmp_path / "whole")
    assert len(whole) == 6 and fit(tmp_path / "resumed", tmp_path / "whole" / "step=4.ckpt") == whole[4:]


def test_every_folder_of_kaggles_archive_is_a_root(tmp_path: Path, mini: Path, samples: list[Sample]) -> None:
    root = kaggle(tmp_path, mini, samples)
    for inner in (".", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"):
        data = ImageNetDataModule(root / inner)
        data.setup("test")
        assert data.num_classes == 20 and len(data.splits["test"].targets) == len(samples)


@pytest.mark.parametrize("layout", ["kaggle", "devkit", "packed devkit"])
def test_classes_are_named_in_words(layout: str, tmp_path: Path, mini: Path, samples: list[Sample]) -> None:
    root = LAYOUTS[layout](tmp_path, mini, samples)
    wnids = ImageNetDataModule(root).label_names()
    data = ImageNetDataModule(root, names="words", image_size=32)
    data.setup()
    assert data.class_names == [f"name of {wnid}, {wnid[-3:]}" for wnid in wnids]
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    classes = {name: wnid for name, wnid, _ in samples}
    expected = [labels[classes[Path(path).stem]] for path in data.splits["test"].images]
    assert data.splits["test"].targets.tolist() == expected
    tested = ImageNetDataModule(root, image_size=32, names="words")
    (root / "ILSVRC" / "Data" / "CLS-LOC" / "train" if layout == "kaggle" else root / "train").unlink()
    tested.adopt(data.description)
    tested.setup("test")
    assert tested.splits["test"].targets.tolist() == expected


def test_the_thousand_classes_have_their_usual_names(tmp_path: Path) -> None:
    wnids = ["n01440764", *(f"n02{number:06}" for number in range(998)), "n15075141"]
    names = find_words(tmp_path, wnids)
    assert names[:2] == ["tench", "goldfish"] and len(set(names)) == 1000
    with pytest.raises(UsageError, match=r"names: .* has 2 classes.*LOC_synset_mapping.txt.*set names to wnid"):
        find_words(tmp_path, ["n01440764", "n15075141"])


def _without_images(root: Path, count: int) -> None:
    for path in sorted((root / "ILSVRC" / "Data" / "CLS-LOC" / "val").iterdir())[:count]:
        path.unlink()


def _with_others(root: Path) -> None:
    val = root / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    for name in ("one", "two"):
        shutil.copy(next(val.iterdir()), val / f"{name}.JPEG")


def _with_class(root: Path, name: str) -> None:
    """Add a class to the training images."""
    train = root / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    source = train.resolve()
    train.unlink()
    train.mkdir()
    for folder in source.iterdir():
        (train / folder.name).symlink_to(folder)
    (train / name).symlink_to(next(source.iterdir()))


def test_list_may_have_blank_lines_and_no_header(tmp_path: Path, mini: Path, samples: list[Sample]) -> None:
    root = kaggle(tmp_path, mini, samples)
    _, lines = (root / SOLUTION).read_text().split("\n", 1)
    (root / SOLUTION).write_text(f"{lines}\n\n")
    data = ImageNetDataModule(root, image_size=32)
    data.setup("test")
    assert len(data.splits["test"].targets) == len(samples)


def _replaced(root: Path, old: str, new: str) -> None:
    (root / SOLUTION).write_text((root / SOLUTION).read_text().replace(old, new, 1))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda root: _without_images(root, 3),
        r"lists 200 images, of which .*val lacks 3 \(.*, and .* contains 0",
    ),
    "superfluous": (_with_others, r"val lacks 0, and .*val contains 2 \(.*one.*two.*\) that it does not list"),
    "superfluous class": (
        lambda root: _with_class(root, "backup"),
        r"train/ has 1 class of which .*LOC_val_solution.csv lists no image, backup: move such folders elsewhere",
    ),
    "no list": (
        lambda root: (root / SOLUTION).unlink(),
        r"val contains images, but no class folders.*LOC_val_solution",
    ),
    "empty list": (lambda root: (root / SOLUTION).write_text(""), r"lists 0 images, of which .* contains 200"),
    "wrong line": (lambda root: _replaced(root, ",n0", ";n0"), r"LOC_val_solution.csv, line 2: it is not an image"),
    "other class": (
        lambda root: _replaced(root, ",n", ",n99999999 1 1 1 1 n"),
        r"lists images of 1 class without a folder in train/, .*n99999999",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_incomplete_copies_are_refused_with_counts(
    case: str, tmp_path: Path, mini: Path, samples: list[Sample]
) -> None:
    root = kaggle(tmp_path, mini, samples)
    damage, message = BROKEN[case]
    damage(root)
    with pytest.raises(UsageError, match=message) as raised:
        ImageNetDataModule(root, image_size=32).setup("test")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (META, b"nothing", r"meta.mat cannot be read"),
        (GROUND_TRUTH, b"1\n999\n", r"validation_ground_truth.txt has .*999.*, which meta.mat does not list"),
        (GROUND_TRUTH, b"1\n2\n", r"lists 2 images, of which .*val lacks 0, and .* contains 198"),
    ],
)
def test_broken_development_kit_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path, mini: Path, samples: list[Sample]
) -> None:
    root = devkit(tmp_path, mini, samples)
    (root / DEVKIT / "data" / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        ImageNetDataModule(root, image_size=32).setup("test")


def test_broken_archive_of_the_development_kit_is_refused(tmp_path: Path, mini: Path, samples: list[Sample]) -> None:
    flat(tmp_path, mini, samples)
    (tmp_path / f"{DEVKIT}.tar.gz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"ILSVRC2012_devkit_t12.tar.gz cannot be read"):
        ImageNetDataModule(tmp_path, image_size=32).setup("test")
    with tarfile.open(tmp_path / f"{DEVKIT}.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    with pytest.raises(UsageError, match=r"has no meta.mat: copy it again"):
        ImageNetDataModule(tmp_path, image_size=32).setup("test")
