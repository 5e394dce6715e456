"""Test custom class folders: layouts, sizes, statistics, augmentation, and equal batches wherever they are made."""

import dataclasses
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from hsakd_pl import (
    CIFAR100DataModule,
    ImageFolderDataModule,
    ImageNetDataModule,
    STL10DataModule,
    TinyImageNetDataModule,
)
from hsakd_pl.data.images import open_image
from hsakd_pl.data.statistics import FILE, measure
from hsakd_pl.errors import UsageError

CLASSES = ("ant", "bee", "cow")
MODES = (("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("RGB", "webp"))
QUIET = {"num_workers": 0, "image_size": 16, "batch_size": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def pictures(folder: Path, classes: Sequence[str] = CLASSES, count: int = 5) -> Path:
    """Write class folders of pictures of several sizes, modes and formats."""
    generator = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            mode, ending = MODES[number % len(MODES)]
            height, width = 18 + 3 * number, 30 - 2 * number
            picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
            picture.save(folder / name / f"{number}.{ending}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write the folders ``train`` and ``val``."""
    pictures(tmp_path / "photos" / "train")
    return pictures(tmp_path / "photos" / "val").parent


def ready(root: Path, stage: str | None = "fit", **options: Any) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root, **{**QUIET, **options})
    data.setup(stage)
    return data


def names_of(data: ImageFolderDataModule, split: str) -> set[str]:
    return {os.path.relpath(path, data.root) for path in data.splits[split].images}


# Which folder is which split


@pytest.mark.parametrize(
    ("folders", "val", "test", "said"),
    [
        (["val"], "val", "val", "Validating and testing on {root}/val, as the paper does"),
        (["Valid"], "Valid", "Valid", "Validating and testing on {root}/Valid"),
        (["test"], "test", "test", "Validating and testing on {root}/test"),
        (["valid", "test"], "valid", "test", "Validating on {root}/valid, testing on {root}/test"),
    ],
)
def test_val_and_test_folders_serve_their_split_and_one_alone_serves_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folders: list[str], val: str, test: str, said: str
) -> None:
    for name in ["train", *folders]:
        pictures(tmp_path / name)
    with caplog.at_level("INFO"):
        data = ready(tmp_path, None, mean="imagenet")
        data.setup("test")
    assert caplog.text.count(said.format(root=tmp_path)) == 1
    assert data.class_names == [*CLASSES] and data.num_classes == 3
    folders_of = {name: {path.split("/")[0] for path in names_of(data, name)} for name in data.splits}
    assert folders_of == {"train": {"train"}, "val": {val}, "test": {test}}
    assert (data.splits["val"] is data.splits["test"]) == (val == test)
    assert data.validated_on == ("test split" if val == test else "validation folder")


def test_single_folder_is_split_by_val_fraction_independently_of_seed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = pictures(tmp_path / "photos", count=10)
    with caplog.at_level("INFO"):
        data = ready(root, val_fraction=0.2, mean="imagenet", seed=1)
    assert f"Validating and testing on 0.2 of the images in {root}" in caplog.text
    others = [ready(root, "test", val_fraction=0.2, mean="imagenet", seed=seed) for seed in (1, 2)]
    assert all(names_of(other, "test") == names_of(data, "val") == names_of(data, "test") for other in others)
    assert data.splits["val"].targets.bincount().tolist() == [2, 2, 2]
    assert not names_of(data, "train") & names_of(data, "test")
    assert len(names_of(data, "train") | names_of(data, "test")) == 30
    few = ready(root, None, val_fraction=0.2, train_fraction=0.5, mean="imagenet")
    assert names_of(few, "test") == names_of(data, "test") and len(few.splits["train"].targets) == 12


def test_val_fraction_holds_out_train_images_when_test_folder_exists(root: Path) -> None:
    data = ready(root, None, val_fraction=0.4, mean="imagenet")
    assert [len(data.splits[name].targets) for name in ("train", "val", "test")] == [9, 6, 15]
    assert {path.split("/")[0] for path in names_of(data, "val")} == {"train"}
    assert data.validated_on == "0.4 of the training split"


def test_class_named_like_a_split_is_a_class(tmp_path: Path) -> None:
    data = ready(pictures(tmp_path, ("bus", "train")), val_fraction=0.4)
    assert data.class_names == ["bus", "train"]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", None, "Testing"),
        ("TRAIN", "Validation", "TEST"),
        ("trn", "dev", "eval"),
        ("training_set", None, "test_set"),
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        ("Train Images", "valid_images", None),
        ("train2017", "val2017", "test2017"),
        ("01_train", None, "02_test"),
        ("X_train", None, "X_test"),
    ],
)
def test_usual_names_of_splits_are_recognised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, train: str, val: str | None, test: str | None
) -> None:
    for name, count in ((train, 4), (val, 2), (test, 1)):
        if name:
            pictures(tmp_path / name, count=count)
    with caplog.at_level("INFO"):
        data = ready(tmp_path, None, mean="imagenet")
    assert data.class_names == [*CLASSES]
    assert [len(data.splits[name].targets) for name in ("train", "test")] == [12, 3 if test else 6]
    assert len(data.splits["val"].targets) == (6 if val else 3)
    assert data.layout[:3] == (
        tmp_path / train,
        tmp_path / val if val and test else None,
        tmp_path / (test or val or ""),
    )
    assert "Read 3 classes, ant, bee, cow, with images: 12 in train" in caplog.text


@pytest.mark.parametrize("name", ["train", "Training", "valid", "test", "dev"])
@pytest.mark.parametrize("below", ["", "images"])
def test_split_named_class_is_a_class_or_refused(tmp_path: Path, name: str, below: str) -> None:
    for folder in ("bus", "car", name):
        pictures(tmp_path / folder, (below,))
    if below:
        with pytest.raises(UsageError, match=rf"contains {name}/ next to bus/, car/.*could be a split or a class"):
            ready(tmp_path, val_fraction=0.4)
    else:
        assert ready(tmp_path, val_fraction=0.4).class_names == sorted(["bus", "car", name])


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["bus/a", "train/a", "train/b"], "contains train/ next to bus/"),
        (["bus", "train", "train/more"], "contains train/ next to bus/"),
        (["unlabelled", "train/a", "train/b"], "contains train/ next to unlabelled/"),
        (["bus", "train", "test"], "contains test/, train/ without class folders next to bus/"),
        (["train", "test"], r"contains no class folders.*test contains images, but no class folders: sort them"),
        (["train/a", "train/b", "val"], r"val contains images, but no class folders: sort them into val/<class>/"),
        (
            ["bus/train", "bus/test", "car/train", "car/test"],
            "bus contains test/, train/, so that it could be a",
        ),
        (["images/train", "images/val", "masks/train", "masks/val"], "images contains train/, val/, so that it could"),
        (["birds_train/a", "birds_train/b", "birds_test/a"], "birds_test/, birds_train/, which could be splits or"),
        (["letterTrain", "letterValid", "others"], "letterTrain/, letterValid/, which could be splits or classes"),
        (["birds/Training/a", "birds/valid/a", "cats/a"], "birds contains Training/, valid/, so that it could be a"),
        (["train/a", "train/b", "val/a", "dev/a"], "val and .*dev are both|dev and .*val are both"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    for folder in folders:
        pictures(tmp_path / folder, ("",), count=4)
    with pytest.raises(UsageError, match=message):
        ready(tmp_path)


def test_folders_next_to_unmistakable_splits_are_ignored_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("train", "val"):
        pictures(tmp_path / folder)
    pictures(tmp_path / "unlabelled", ("",))
    (tmp_path / "docs").mkdir()
    with caplog.at_level("INFO"):
        assert ready(tmp_path).class_names == [*CLASSES]
    assert (
        f"as the paper does (val_fraction holds out images of train/ instead); images in {tmp_path}/unlabelled are"
        in (caplog.text)
    )


@pytest.mark.parametrize("names", ["café", "Ångström", "한국"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_class_names_in_other_unicode_forms_are_equal(tmp_path: Path, names: str, forms: tuple[str, str]) -> None:
    for split, form in zip(("train", "val"), forms, strict=True):
        pictures(tmp_path / split, (unicodedata.normalize(form, names), "zebra"))
    data = ready(tmp_path)
    assert len(data.splits["train"].images) == len(data.splits["val"].images) == 10
    both = data.splits["train"].images + data.splits["val"].images
    labels = data.splits["train"].targets.tolist() + data.splits["val"].targets.tolist()
    zebra = data.class_names.index("zebra")
    assert [label == zebra for label in labels] == ["zebra" in path for path in both]
    other = ImageFolderDataModule(tmp_path, **QUIET, mean="imagenet")
    renamed = [unicodedata.normalize(forms[1], name) for name in data.class_names]
    other.adopt(dataclasses.replace(data.description, class_names=renamed))
    pictures(tmp_path / "train", (unicodedata.normalize(forms[1], names),))
    with pytest.raises(UsageError, match=r"twice, in two Unicode forms .*: merge the two"):
        ready(tmp_path)


@pytest.mark.parametrize(("level", "channel"), [(0, 2), (255, 0), (77, 1)])
def test_constant_channel_is_named_with_statistics_that_work(tmp_path: Path, level: int, channel: int) -> None:
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(4):
            image = generator.integers(0, 256, (9, 9, 3), np.uint8)
            image[:, :, channel] = level
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    with pytest.raises(UsageError, match=rf"no std for the channel {('red', 'green', 'blue')[channel]}") as error:
        ready(tmp_path, val_fraction=0.5)
    mean, std = map(json.loads, re.findall(r"'(\[.*?\])'", str(error.value)))
    data = ready(tmp_path, val_fraction=0.5, mean=mean, std=std)
    assert data.mean[channel] == round(level / 255, 4) and data.std[channel] == 1


def without(folder: Path) -> Path:
    shutil.rmtree(folder)
    return folder.parent


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda root: root / "nowhere", {}, r"nowhere does not exist: point --data.init_args.root"),
        (lambda root: root.parent, {}, r"contains one class, photos.*\(\S+/photos looks like the folder you want\)"),
        (lambda root: root / "train" / "ant", {}, r"train/ant contains no class folders"),
        (lambda root: root / "train", {}, r"no val/, valid/ or test/ .*--data.init_args.val_fraction"),
        (lambda root: without(root / "val"), {}, r"no val/, valid/ or test/ .*--data.init_args.val_fraction"),
        (lambda root: without(root / "train"), {}, r"photos contains no class folders"),
        (
            lambda root: without(root / "train/ant").parent,
            {},
            "val/ant is not one of the classes of the",
        ),
        (lambda root: without(root / "val/ant").parent, {}, r"val: no image found for the classes ant"),
        (lambda root: pictures(root / "valid").parent, {}, r"val and \S+valid are both the val split"),
        (lambda root: pictures(root / "test").parent, {"val_fraction": 0.2}, r"val_fraction: \S+val validates and"),
        (lambda root: root / "train", {"val_fraction": 0.01}, r"val_fraction=0.01 "),
    ],
)
def test_folders_without_splits_raise_usage_error(
    root: Path, change: Callable[[Path], Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ready(change(root), **options)


def test_single_class_and_empty_class_raise(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains one class, ant: a classifier needs at least two"):
        ready(pictures(tmp_path / "one", ("ant",)), val_fraction=0.2)
    folder = pictures(tmp_path / "two")
    (folder / "dog").mkdir()
    with pytest.raises(UsageError, match="no image found for the classes dog"):
        ready(folder, val_fraction=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be from 1 to 4096, got 0"),
        ({"image_size": 10**5}, "got 100000"),
        ({"resident_mib": -1}, "resident_mib must be at least 0, got -1"),
        ({"mean": [0.5] * 3}, "std must be three numbers if mean is, got None"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0.0]}, "above 0"),
        ({"mean": [0.5] * 2, "std": [0.5] * 3}, "three finite numbers"),
        ({"std": [0.5] * 3}, r"std must be left out with mean auto, got \[0.5, 0.5, 0.5\]"),
        ({"mean": "cifar"}, "mean must be auto, imagenet or three numbers, got cifar"),
        ({"augmentation": "mixup"}, "augmentation must be crop, resized_crop, none, or the class path"),
    ],
)
def test_invalid_imagefolder_options_raise_naming_them(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ImageFolderDataModule(root, **{**QUIET, **options})


def test_errors_of_other_data_modules_suggest_imagefolder(root: Path) -> None:
    for data in (CIFAR100DataModule(root / "train"), STL10DataModule(root), ImageNetDataModule(root / "train")):
        with pytest.raises(UsageError, match="contains class folders: ImageFolderDataModule can read them"):
            data.setup("fit")
    (root / "val").rename(root / "test")
    with pytest.raises(UsageError, match="pixels, not 32 x 32: resize it, or use ImageFolderDataModule"):
        CIFAR100DataModule(root).setup("fit")
    with pytest.raises(UsageError, match=r"no CIFAR-100 in \S+nowhere\S* \S+ \S+ \S+ .*true$"):
        CIFAR100DataModule(root / "nowhere").setup("fit")


# Statistics


def test_measured_statistics_equal_those_over_all_pixels() -> None:
    images = torch.randint(256, (7, 3, 5, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = measure([images[:3], images[3:]])
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-15)
    assert std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-15)
    assert measure([images.flip(0)]) == (mean, std)


@pytest.mark.parametrize("resident_mib", [0, 1024])
def test_statistics_are_measured_once_on_training_images(
    root: Path, resident_mib: int, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"val_fraction": 0.4, "resident_mib": resident_mib, "seed": 3}
    with caplog.at_level("INFO"):
        data = ready(root, **options)
        again = ready(root, "test", **options)
    train = torch.cat([images for images, _ in data.plain_loader(data.splits["train"])]).double() / 255
    assert data.mean == again.mean == pytest.approx(train.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == again.std == pytest.approx(train.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    [entry] = json.loads((root / FILE).read_text()).values()
    assert (entry["images"], entry["image_size"]) == (9, 16)
    messages = [record.message for record in caplog.records if "Mean and std" in record.message]
    assert "of 9 training images" in messages[0] and "measured before and are stored in" in messages[1]
    description = data.description
    assert (description.mean, description.std) == (data.mean, data.std)


def test_changed_folder_or_size_is_measured_again(root: Path) -> None:
    first = ready(root)
    [known] = json.loads((root / FILE).read_text())
    ready(root, image_size=20)
    Image.new("RGB", (20, 20), "white").save(root / "train/ant/0.jpg")
    changed = ready(root)
    assert changed.mean != first.mean
    (root / FILE).write_text("spoilt")
    assert ready(root).mean == changed.mean
    [key] = json.loads((root / FILE).read_text())
    assert key != known


def test_statistics_of_read_only_folder_are_cached_in_home(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (root / FILE).mkdir()  # which cannot be replaced, even by root
    with caplog.at_level("INFO"):
        first = ready(root)
        assert ready(root).mean == first.mean
    assert not (root / FILE).is_file() and (cache / "hsakd_pl" / FILE).is_file()
    assert f"measured before and are stored in {cache}" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "train/ant/0.jpg"))
    with caplog.at_level("INFO"):
        assert ready(root).mean == first.mean
    assert "stored nowhere" in caplog.text


def test_single_colour_images_raise_for_statistics(tmp_path: Path) -> None:
    for name in CLASSES[:2]:
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (9, 9), "red").save(tmp_path / name / f"{number}.png")
    with pytest.raises(UsageError, match=r"std must be three finite numbers, above 0, got \[0.0, 0.0, 0.0\]"):
        ready(tmp_path, val_fraction=0.5)


# Batches


def epoch_of(data: ImageFolderDataModule, epoch: int, after: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": epoch, "batches": after})
    loader.sampler.set_epoch(epoch)
    return list(loader)


def equal(one: Any, other: Any) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("augmentation", ["crop", "none"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resident_and_worker_batches_are_equal(root: Path, augmentation: str, num_workers: int) -> None:
    kept = ready(root, augmentation=augmentation)
    opened = ready(root, augmentation=augmentation, resident_mib=0, num_workers=num_workers)
    assert kept.resident(kept.splits["train"]) is kept.resident(kept.splits["train"])
    assert opened.resident(opened.splits["train"]) is None
    first = epoch_of(kept, 1)
    assert [tuple(images.shape) for images, _ in first] == [(4, 3, 16, 16)] * 3 + [(3, 3, 16, 16)]
    assert equal(first, epoch_of(opened, 1))
    assert equal(epoch_of(kept, 1, after=2), first[2:]) and equal(epoch_of(opened, 1, after=2), first[2:])
    assert equal(first, epoch_of(kept, 0)) is False
    assert equal(kept.val_dataloader(), opened.val_dataloader())


@pytest.mark.parametrize("resident_mib", [0, 1024])
def test_resized_crops_come_from_full_size_pictures(root: Path, resident_mib: int) -> None:
    data = ready(root, augmentation="resized_crop", resident_mib=resident_mib, image_size=28)
    assert data.description.resize == 32
    tested = [data.description.transform(open_image(path)) for path in data.splits["test"].images]
    assert torch.equal(torch.cat([images for images, _ in data.test_dataloader()]), torch.stack(tested))
    reference = ready(root, augmentation="resized_crop", resident_mib=0, image_size=28)
    assert equal(epoch_of(data, 2), epoch_of(reference, 2))


def test_flip_false_disables_flips(root: Path) -> None:
    still = ready(root, augmentation="crop", flip=False, image_size=7)  # an eighth of 7 is a padding of 0
    assert equal(sorted_by_sum(epoch_of(still, 0)), sorted_by_sum(list(still.plain_loader(still.splits["train"]))))
    assert "Flip" not in str(ready(root, augmentation="resized_crop", flip=False).train_transform)


def sorted_by_sum(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor]]:
    images = torch.cat([images for images, _ in batches])
    return [(images[images.flatten(1).long().mul(torch.arange(images[0].numel())).sum(1).argsort()],)]


def test_torchvision_transform_gets_picture_and_result_is_resized(root: Path) -> None:
    seen: list[Any] = []
    data = ready(root, augmentation=v2.Compose([v2.Lambda(lambda each: seen.append(each) or each), v2.RandAugment()]))
    assert {images.shape[1:] for images, _ in epoch_of(data, 0)} == {(3, 16, 16)}
    assert {type(each) for each in seen} == {Image.Image} and len({each.size for each in seen}) == 5
    assert equal(epoch_of(data, 3), epoch_of(ready(root, augmentation=v2.RandAugment(), num_workers=2), 3)) is True


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), r"ToDtype.* makes torch.float32 \(3, 16"),
        (v2.Compose([v2.PILToTensor(), v2.Grayscale(1)]), r"Grayscale.* makes torch.uint8 \(1, 16, 16\)"),
        (v2.RandomCrop(100), r"the transform .*RandomCrop.* fails: Required crop size"),
        (v2.Lambda(lambda each: None), r"the transform .*Lambda"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_transform_without_uint8_output_raises_naming_it(
    root: Path, transform: v2.Transform, message: str, num_workers: int
) -> None:
    if num_workers and "lambda" in repr(transform):
        pytest.skip("workers that are forked take it, spawned ones do not")
    with pytest.raises(UsageError, match=message):
        epoch_of(ready(root, augmentation=transform, num_workers=num_workers, mean="imagenet"), 0)


@pytest.mark.parametrize("resident_mib", [0, 1024])
def test_broken_picture_raises_naming_file(root: Path, resident_mib: int) -> None:
    broken = root / "train/bee/1.png"
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(UsageError, match=str(broken)):
        ready(root, resident_mib=resident_mib)


# The command line

DATA = {"class_path": "hsakd_pl.ImageFolderDataModule", "init_args": {"root": "photos", **QUIET}}


def test_command_line_accepts_words_numbers_and_class_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    rand = {"class_path": "torchvision.transforms.v2.RandAugment", "init_args": {"num_ops": 1}}
    folder = small.run("fit", data=small.merged(DATA, {"init_args": {"augmentation": rand}}))
    assert "RandAugment" in (folder / "config.yaml").read_text()
    protocol = json.loads((folder / "result.json").read_text())["protocol"]
    assert "num_ops=1" in protocol["augmentation"]
    for number, options in enumerate(
        [
            ["--data.init_args.augmentation=torchvision.transforms.v2.RandAugment"],
            ["--data.init_args.augmentation=resized_crop", "--data.init_args.mean=imagenet"],
            ["--data.init_args.mean=[0.4, 0.5, 0.6]", "--data.init_args.std=[0.2, 0.2, 0.2]"],
        ]
    ):
        small.run("fit", *options, f"--trainer.default_root_dir=runs/{number}", data=DATA)
    saved = [torch.load(f"runs/{number}/last.ckpt", weights_only=True)["data"] for number in range(3)]
    assert [each["mean"][0] for each in saved[1:]] == [0.485, 0.4]
    assert "RandAugment" in json.loads(Path("runs/0/result.json").read_text())["protocol"]["augmentation"]


def test_test_and_predict_run_without_training_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    folder = small.run("fit", data=DATA)
    before = torch.load(folder / "last.ckpt", weights_only=True)
    assert before["data"]["class_names"] == [*CLASSES]
    assert before["ImageFolderDataModule"]["mean"] == before["data"]["mean"]
    shutil.move("photos/val", "pictures")
    shutil.rmtree("photos")
    small.run("predict", "--ckpt_path=last", "--data.init_args.predict_dir=pictures", data=DATA)
    assert len((folder / "predictions.csv").read_text().splitlines()) == 16
    shutil.copytree("pictures", "photos/test")
    small.run("test", "--ckpt_path=last", data=DATA)
    assert 0 <= json.loads((folder / "test.json").read_text())["acc"] <= 100


def test_resumed_run_keeps_its_first_statistics(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    folder = small.run("fit", data=DATA)
    before = torch.load(folder / "last.ckpt", weights_only=True)["data"]
    (key,) = json.loads((root / FILE).read_text())
    (root / FILE).write_text(json.dumps({key: {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}))
    small.run("fit", "--ckpt_path=last", "--trainer.max_epochs=2", data=DATA)
    after = torch.load(folder / "last.ckpt", weights_only=True)
    assert after["epoch"] == 1 and after["data"] == before
    stored = after["ImageFolderDataModule"]
    assert {name: stored[name] for name in ("mean", "std")} == {name: before[name] for name in ("mean", "std")}
    assert before["mean"] != [0.5, 0.5, 0.5]


@pytest.mark.parametrize(("train", "val"), [("Training", "valid"), ("train_images", "Validation Set"), ("trn", "dev")])
def test_other_data_sets_recognise_usual_names_of_splits(tmp_path: Path, train: str, val: str) -> None:
    pictures(tmp_path / train, count=2)
    pictures(tmp_path / val, count=1)
    data = ImageNetDataModule(tmp_path, image_size=32, num_workers=0)
    data.setup()
    assert data.class_names == [*CLASSES]
    assert [len(data.splits[name].images) for name in ("train", "test")] == [6, 3]


@pytest.mark.parametrize("names", [("école", "zebra"), ("Ångström", "Zug"), ("Äpfel", "Birnen")])
def test_label_order_is_that_of_equal_names_in_any_unicode_form(tmp_path: Path, names: tuple[str, str]) -> None:
    descriptions = []
    prints = []
    for form in ("NFC", "NFD"):
        pictures(tmp_path / form, [unicodedata.normalize(form, name) for name in names])
        data = ready(tmp_path / form, val_fraction=0.4, mean="imagenet")
        descriptions.append(data.description)
        prints.append(data.fingerprints)
    assert descriptions[0] == descriptions[1]
    assert prints[0] == prints[1]


def test_log_counts_the_images_of_every_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        pictures(tmp_path / split, count=count)
    with caplog.at_level("INFO"):
        ready(tmp_path, None, mean="auto")
    assert "with images: 12 in train, 6 in val, 3 in test" in caplog.text


@pytest.mark.parametrize(("kind", "classes"), [(CIFAR100DataModule, 100), (TinyImageNetDataModule, 200)])
def test_data_set_to_be_downloaded_has_not_the_classes_of_another(tmp_path: Path, kind: Any, classes: int) -> None:
    pictures(tmp_path / "Training", count=1)
    assert kind(tmp_path, download=True).num_classes == classes
    assert kind(tmp_path).num_classes == 3
