"""Test torchvision's sets by name, and splits of any map-style data set."""

import gzip
import inspect
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import pytorch_lightning as pl
import torch
import torchvision.datasets
from small import Losses, documented, error_of
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2.functional import pil_to_tensor

from hsakd_pl import BaselineModule, CIFAR100DataModule, ImageDataModule, TorchvisionDataModule, open_image
from hsakd_pl.cli.main import main
from hsakd_pl.data import Split
from hsakd_pl.data.augment import PadCropFlip, random_resized_crop, resized_center_crop
from hsakd_pl.data.torchvision_sets import TORCHVISION_SETS
from hsakd_pl.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-data.md"


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def photographs(folder: Path, names: list[str], ending: str = "jpg") -> None:
    """Write a photograph of noise for each name, each of another size."""
    for number, name in enumerate(names):
        path = folder / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise(1, 20 + number % 3, 24, 3, seed=number)[0]).save(path)


def fashion_mnist(root: Path) -> None:
    """Write 40 and 20 grey pictures as the gzipped files of MNIST."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 20)):
        images, labels = noise(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())
            with gzip.open(folder / f"{name}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())


def food(root: Path) -> None:
    folder = root / "food-101"
    for split, count in (("train", 6), ("test", 3)):
        names = {dish: [f"{dish}/{split}{number}" for number in range(count)] for dish in ("sushi", "apple_pie")}
        (folder / "meta").mkdir(parents=True, exist_ok=True)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(names))
        photographs(folder / "images", [name for dish in names.values() for name in dish])


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split, count in (("trainval", 6), ("test", 3)):
        names = [
            (f"{breed}_{split}{number}", label)
            for label, breed in ((1, "Sphynx"), (2, "great_dane"))
            for number in range(count)
        ]
        lines = [f"{name} {label} 1 1\n" for name, label in names]
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))
        photographs(folder / "images", [name for name, _ in names])


def textures(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        names = [f"{kind}/{split}_{number}" for kind in ("zigzagged", "banded") for number in range(count)]
        (folder / "labels" / f"{split}1.txt").write_text("".join(f"{name}.jpg\n" for name in names))
        photographs(folder / "images", names)


def satellite(root: Path) -> None:
    names = [f"{kind}/{kind}_{number}" for kind in ("River", "Forest") for number in range(10)]
    photographs(root / "eurosat" / "2750", names)


def imagenette(root: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        names = [f"{wnid}/{wnid}_{number}" for wnid in ("n01440764", "n02102040") for number in range(count)]
        photographs(root / "imagenette2" / split, names, "JPEG")


# Writes a small set; number of images for training, validation and testing; class names
GENERATED: dict[str, tuple[Callable[[Path], None], tuple[int, int, int], list[str]]] = {
    "FashionMNIST": (fashion_mnist, (40, 20, 20), torchvision.datasets.FashionMNIST.classes),
    "Food101": (food, (12, 6, 6), ["apple_pie", "sushi"]),
    "OxfordIIITPet": (pets, (12, 6, 6), ["Sphynx", "Great Dane"]),
    "DTD": (textures, (12, 4, 6), ["banded", "zigzagged"]),
    "EuroSAT": (satellite, (16, 4, 4), ["Forest", "River"]),
    "Imagenette": (imagenette, (12, 6, 6), ["tench, Tinca tinca", "English springer, English springer spaniel"]),
}


@pytest.fixture(params=GENERATED)
def generated(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    write, _, _ = GENERATED[request.param]
    write(tmp_path)
    return request.param, tmp_path


def small(dataset: str, root: Path, **options: Any) -> TorchvisionDataModule:
    undivided = {"val_fraction": 0.2} if dataset == "EuroSAT" else {}
    usual = {"image_size": 16, "batch_size": 5, "seed": 3, "num_workers": 0, "mean": "imagenet"} | undivided
    return TorchvisionDataModule(root, dataset=dataset, **(usual | options))


def test_splits_and_classes_of_sets_are_found(generated: tuple[str, Path]) -> None:
    name, root = generated
    _, counts, classes = GENERATED[name]
    data = small(name, root)
    data.setup()
    assert data.class_names == classes and data.num_classes == len(classes)
    assert tuple(len(data.splits[split].targets) for split in ("train", "val", "test")) == counts
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.uint8 and labels.dtype == torch.int64


def test_pictures_and_labels_are_those_of_torchvision(generated: tuple[str, Path]) -> None:
    name, root = generated
    options = {} if name == "EuroSAT" else {TORCHVISION_SETS[name].option: TORCHVISION_SETS[name].train}
    published = getattr(torchvision.datasets, name)(root, **options)
    data = small(name, root)
    split = data.read_part(data.layout.train, data.label_names())
    assert split.targets.tolist() == [label for _, label in published]
    for source, (picture, _) in zip(split.images, published, strict=True):
        assert torch.equal(pil_to_tensor(open_image(source)), pil_to_tensor(picture.convert("RGB")))


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_every_listed_split_is_one_of_torchvisions(name: str, tmp_path: Path) -> None:
    listed = TORCHVISION_SETS[name]
    made = getattr(torchvision.datasets, name)
    assert (
        not listed.option
        or listed.option in inspect.signature(made).parameters
        or issubclass(made, torchvision.datasets.MNIST)
    )
    data = TorchvisionDataModule(tmp_path, dataset=name)
    parts = [part for part in (data.layout.train, data.layout.val, data.layout.test) if part]
    for part in parts:
        with pytest.raises(
            UsageError, match=rf"^torchvision's {name} in .* cannot be read.*--data.init_args.root"
        ) as raised:
            data._open(part)
        assert not re.search("Unknown value|unexpected keyword|not one of", str(raised.value))
        assert "\n" not in str(raised.value)
    assert len({str(part) for part in parts}) == len(parts)


def test_documented_table_is_that_of_the_sets() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    stated = {name: cells for name, *cells in rows if name in TORCHVISION_SETS}
    assert set(stated) == set(TORCHVISION_SETS)
    for name, listed in TORCHVISION_SETS.items():
        expected = ["all images", "", ""]
        if listed.option:
            values = (listed.train, listed.val, listed.test)
            expected = ["" if value is None else f"`{listed.option}={value!r}`" for value in values]
        assert stated[name] == expected, name


def test_cifar100_of_torchvision_trains_with_bit_equal_losses(
    cifar_mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)  # a part of the set
    monkeypatch.setitem(torchvision.datasets.CIFAR100.meta, "md5", None)  # and other names where that part is made here
    plain = CIFAR100DataModule(cifar_mini, seed=3)
    statistics = {"mean": CIFAR100DataModule.mean, "std": CIFAR100DataModule.std}
    data = TorchvisionDataModule(cifar_mini, dataset="CIFAR100", seed=3, image_size=32, **statistics)
    assert losses(data) == losses(plain)
    assert data.description == plain.description
    for split in ("train", "val"):
        assert data.facts.get(split, data.facts["train"]).labels == plain.facts.get(split, plain.facts["train"]).labels


def losses(
    data: ImageDataModule, checkpoint: Path | None = None, folder: Path | None = None, **options: Any
) -> list[float]:
    torch.manual_seed(0)
    recorder = Losses()
    callbacks: list[pl.Callback] = [recorder]
    if folder is not None:
        callbacks.append(pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1))
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    usual = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(callbacks=callbacks, enable_checkpointing=folder is not None, **(silent | usual | options))
    module = BaselineModule("resnet8", num_classes=data.num_classes, lr=0.01)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    return recorder.values


def test_misspelt_set_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset: Flower102 is none of torchvision's .*did you mean Flowers102\?"):
        TorchvisionDataModule(tmp_path, dataset="Flower102")
    satellite(tmp_path)
    with pytest.raises(UsageError, match=r"EuroSAT in .* has no split to validate and test on: set .*val_fraction"):
        small("EuroSAT", tmp_path, val_fraction=0.0).setup()


def test_arguments_reach_torchvision(tmp_path: Path) -> None:
    (tmp_path / "dtd" / "dtd" / "labels").mkdir(parents=True)
    textures(tmp_path / "other")
    for file in (tmp_path / "other" / "dtd" / "dtd" / "labels").iterdir():
        file.rename(file.with_name(file.name.replace("1", "7")))
    data = small("DTD", tmp_path / "other", arguments={"partition": 7})
    data.setup()
    assert len(data.splits["val"].targets) == 4
    with pytest.raises(UsageError, match=r"with split='train' \(.*nosuch"):
        small("DTD", tmp_path / "other", arguments={"nosuch": 7}).setup()


@pytest.mark.parametrize("name", ["split", "target_type", "transform", "root"])
def test_arguments_that_would_have_no_effect_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"arguments: {name} cannot be set"):
        TorchvisionDataModule(tmp_path, dataset="Food101", arguments={name: "test"})
    TorchvisionDataModule(tmp_path, dataset="EMNIST", arguments={"split": "letters"})
    with pytest.raises(UsageError, match=r"arguments must be a dictionary of options by name, got x"):
        TorchvisionDataModule(tmp_path, dataset="Food101", arguments="x")


def _broken(root: Path) -> None:
    next(root.rglob("*sushi/train1.jpg")).write_bytes(b"nothing")


def _missing(root: Path) -> None:
    next(root.rglob("*sushi/train1.jpg")).unlink()


def _empty(root: Path) -> None:
    (root / "food-101" / "meta" / "train.json").write_text("{}")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "broken": (_broken, r"Food101\[\d+\] cannot be read \(cannot identify image file .*train1.jpg"),
    "missing": (_missing, r"Food101\[\d+\] cannot be read \(.*No such file.*train1.jpg.*replace or remove its file"),
    "empty": (_empty, r"torchvision's Food101 has no image: put a complete copy in its folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_set_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    food(tmp_path)
    harm, message = DAMAGES[damage]
    harm(tmp_path)
    with pytest.raises(UsageError, match=message) as raised:
        small("Food101", tmp_path).setup("fit")
    assert "\n" not in str(raised.value)


def test_adopted_description_needs_no_pictures(tmp_path: Path) -> None:
    food(tmp_path)
    description = small("Food101", tmp_path).description
    data = small("Food101", tmp_path / "gone", download=True)
    data.adopt(description)
    assert data.num_classes == 2 and data.label_names() == ["apple_pie", "sushi"]


@pytest.mark.slow
def test_command_line_trains_tests_and_exports_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    food(tmp_path / "data")
    fit, test, export = documented("TorchvisionDataModule")
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
    main([*fit, *quiet])
    main(test)
    main([*export, "--formats", "safetensors"])
    assert "sushi" in (tmp_path / "exported-food" / "config.json").read_text()
    message = error_of(capsys, lambda: main([*fit, *quiet, "--data.dataset", "Flowers102"]))
    assert message.startswith("torchvision's Flowers102 in data cannot be read")


class Shapes(Dataset[Any]):
    """Return pictures of noise in one of several forms, with their labels."""

    def __init__(self, form: str = "image", count: int = 26, labels: Any = None) -> None:
        self.form = form
        self.pixels = noise(count, 12, 16, 3)
        self.answers = [number % 2 for number in range(count)] if labels is None else labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Any:
        pixels = self.pixels[index]
        forms = {
            "image": lambda: PIL.Image.fromarray(pixels),
            "array": lambda: pixels,
            "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
        }
        return forms[self.form](), self.answers[index]


class OwnDataModule(ImageDataModule):
    """Read two splits of a data set of a user."""

    num_classes = 2
    image_size = 8
    mean = std = (0.5, 0.5, 0.5)
    test_transform = resized_center_crop(8, 8)

    def __init__(self, dataset: Any, in_workers: bool = False, **options: Any) -> None:
        super().__init__(batch_size=6, seed=3, **options)
        self.dataset = dataset
        self.train_transform = random_resized_crop(8) if in_workers else PadCropFlip(padding=1)

    def read(self, train: bool) -> Split:
        return Split.from_dataset(self.dataset)


def batches(data: ImageDataModule) -> list[Any]:
    data.setup("fit")
    return list(data.train_dataloader())


@pytest.mark.parametrize("form", ["array", "tensor"])
def test_forms_of_pictures_give_equal_batches(form: str) -> None:
    expected = batches(OwnDataModule(Shapes()))
    found = batches(OwnDataModule(Shapes(form)))
    assert all(
        torch.equal(mine, other)
        for pair in zip(found, expected, strict=True)
        for mine, other in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_own_data_set_resumes_bitwise_inside_an_epoch(num_workers: int, tmp_path: Path) -> None:
    options = {"max_epochs": 2, "limit_train_batches": 1.0}
    whole = losses(OwnDataModule(Shapes(), in_workers=True, num_workers=num_workers), folder=tmp_path / "a", **options)
    data = OwnDataModule(Shapes("array"), in_workers=True, num_workers=num_workers)
    resumed = losses(data, tmp_path / "a" / "step=7.ckpt", tmp_path / "b", **options)
    assert len(whole) == 10 and resumed == whole[7:]


class Lazy(Shapes):
    """Return paths of files, the last of which is broken or, as pictures that are opened in its own code, missing."""

    def __init__(self, folder: Path, opens: bool) -> None:
        super().__init__(count=6)
        self.opens = opens
        self.targets = self.answers
        self.files = [folder / f"{number}.png" for number in range(6)]
        for file, pixels in zip(self.files, self.pixels, strict=True):
            PIL.Image.fromarray(pixels).save(file)

    def __getitem__(self, index: int) -> Any:
        return PIL.Image.open(self.files[index]) if self.opens else self.files[index], self.answers[index]


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_file_of_an_own_data_set_is_named(opens: bool, num_workers: int, tmp_path: Path) -> None:
    data = OwnDataModule(Lazy(tmp_path, opens), in_workers=True, num_workers=num_workers)
    assert len(batches(data)) == 1
    for content in (b"nothing", (tmp_path / "2.png").read_bytes()[:-40], (tmp_path / "2.png").read_bytes()[:40]):
        (tmp_path / "2.png").write_bytes(content)
        with pytest.raises(UsageError, match=r"(Lazy\[2\]|2\.png)") as raised:
            list(data.train_dataloader())
        assert "\n" not in str(raised.value)


def test_labels_are_taken_from_an_attribute_that_agrees_alone() -> None:
    dataset = Shapes()
    opened: list[int] = []
    fetch = Shapes.__getitem__

    class Counted(Shapes):
        def __getitem__(self, index: int) -> Any:
            opened.append(index)
            return fetch(self, index)

    dataset = Counted()
    assert Split.from_dataset(dataset).targets.tolist() == dataset.answers and len(opened) >= 26
    opened.clear()
    dataset.targets = dataset.answers
    assert Split.from_dataset(dataset).targets.tolist() == dataset.answers and len(opened) < 10
    dataset.targets = [1 - label for label in dataset.answers]  # before a target_transform
    assert Split.from_dataset(dataset).targets.tolist() == dataset.answers
    chosen = Subset(dataset, [5, 0, 7])
    assert Split.from_dataset(chosen).targets.tolist() == [1, 0, 1]
    assert Split.from_dataset(dataset, labels=np.arange(26) % 3).targets.tolist() == [
        number % 3 for number in range(26)
    ]


class Same(Dataset[Any]):
    """Return one item at every index."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.item


PICTURE = PIL.Image.new("RGB", (8, 8))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", ["Food101", "FashionMNIST"])
def test_set_resumes_bitwise_inside_an_epoch(name: str, num_workers: int, tmp_path: Path) -> None:
    write, _, _ = GENERATED[name]
    write(tmp_path)
    options = {"max_epochs": 2, "limit_train_batches": 3}
    chosen = {"augmentation": "resized_crop", "resident_mib": 0, "num_workers": num_workers, "batch_size": 4}
    whole = losses(small(name, tmp_path, **chosen), folder=tmp_path / "a", **options)
    again = small(name, tmp_path, **(chosen | {"num_workers": 2 - num_workers}))
    assert losses(again, tmp_path / "a" / "step=4.ckpt", tmp_path / "b", **options) == whole[4:]
    assert len(whole) == 6


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"image": PICTURE, "label": 0},
            r"Same\[0\] is a dictionary of image, label: return \(picture, label\); HubData",
        ),
        (PICTURE, r"Same\[0\] is a Image: return a pair \(picture, label\)"),
        ((PICTURE, "cat"), r"Same\[0\] has a str as label: return integers"),
        ((PICTURE, 0.5), r"Same\[0\] has a float as label"),
        ((torch.zeros(3, 8, 8), 0), r"picture of torch.float32 \(3, 8, 8\), not uint8 \(C, H, W\).*leave out ToTensor"),
        ((np.zeros((3, 8, 8), np.uint8), 0), r"picture of uint8 \(3, 8, 8\), not uint8 \(H, W, C\)"),
        ((None, 0), r"Same\[0\] has a NoneType as picture"),
    ],
)
def test_other_items_are_refused_in_one_line(item: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        batches(OwnDataModule(Same(item), num_workers=0))
    assert "\n" not in str(raised.value)


def test_iterable_data_set_is_refused() -> None:
    with pytest.raises(UsageError, match=r"list_iterator is not a map-style data set"):
        Split.from_dataset(iter([1]))
