"""Test data sets of Hugging Face: the same batches as elsewhere, exact resuming, and what is refused."""

import io
import os
import pickle
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

from hsakd_pl import BaselineModule, CIFAR100DataModule, HubDataModule, ImageFolderDataModule
from hsakd_pl.cli.main import main
from hsakd_pl.errors import UsageError

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pa = pytest.importorskip("pyarrow")  # which datasets needs
parquet_files = pytest.importorskip("pyarrow.parquet")
datasets.disable_progress_bars()

CIFAR = {"mean": CIFAR100DataModule.mean, "std": CIFAR100DataModule.std, "image_size": 32}
CLASSES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what datasets and the package store in caches apart from the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))


def png(pixels: np.ndarray, **options: Any) -> bytes:
    """Return a picture (H, W, 3) as the content of a PNG."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def rows(count: int, seed: int = 0, side: int = 12) -> list[dict[str, Any]]:
    """Return pictures of noise as datasets stores them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side + 4, 3), dtype=np.uint8)
    return [{"bytes": png(picture), "path": None} for picture in pixels]


def table(labels: Any, feature: Any = None, seed: int = 0, **columns: Any) -> Any:
    """Return a table with a picture for each label."""
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=CLASSES)}
    content = {"image": rows(len(labels), seed), "label": labels} | {
        name: values for name, (values, _) in columns.items()
    }
    features |= {name: kind for name, (_, kind) in columns.items()}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def saved(folder: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(folder)
    return folder


def birds(folder: Path, **splits: Any) -> Path:
    """Save a set of three classes: 24 images for training and 9 for testing, or other splits."""
    usual = {"train": table([0, 1, 2] * 8), "test": table([2, 1, 0] * 3, seed=1)}
    return saved(folder, **(usual | splits))


def small(path: Any, **options: Any) -> HubDataModule:
    return HubDataModule(path=path, **({"image_size": 8, "batch_size": 6, "seed": 3, "num_workers": 0} | options))


def as_parquet(cifar: CIFAR100DataModule, folder: Path) -> Path:
    """Write CIFAR-100 as on the hub: a parquet file for each split, PNGs, and two columns of classes."""
    cifar.setup()
    names = cifar.class_names
    features = {
        "img": datasets.Image(),
        "fine_label": datasets.ClassLabel(names=names),
        "coarse_label": datasets.ClassLabel(names=["all", "none"]),
    }
    folder.mkdir()
    for split in ("train", "test"):
        images, labels = cifar.splits[split]
        pictures = [{"bytes": png(image.permute(1, 2, 0).numpy()), "path": None} for image in images]
        content = {"img": pictures, "fine_label": labels.tolist(), "coarse_label": [0] * len(labels)}
        made = datasets.Dataset.from_dict(content, features=datasets.Features(features))
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def parquet(cifar_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_parquet(CIFAR100DataModule(cifar_mini), tmp_path_factory.mktemp("cifar") / "parquet")


def test_cifar100_as_parquet_trains_with_bit_equal_losses(cifar_mini: Path, parquet: Path) -> None:
    folder = parquet
    hub = HubDataModule(path=folder, label_column="fine_label", seed=3, **CIFAR)
    options = {"limit_train_batches": 3, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    expected = losses(CIFAR100DataModule(cifar_mini, seed=3), **options)
    assert losses(hub, **options) == expected
    plain = CIFAR100DataModule(cifar_mini, seed=3)
    plain.setup()
    assert hub.class_names == plain.class_names and hub.description == plain.description
    hub.setup()
    for split in ("train", "test"):
        assert torch.equal(hub.splits[split].targets, plain.splits[split].targets)
        assert hub.facts[split].labels == plain.facts[split].labels
        assert hub.facts[split].names == plain.facts[split].names
    for batches in ("val_dataloader", "test_dataloader"):
        pairs = zip(getattr(hub, batches)(), getattr(plain, batches)(), strict=True)
        assert all(torch.equal(mine[0], other[0]) for mine, other in pairs)


def test_cifar100_as_parquet_holds_out_the_same_images(cifar_mini: Path, parquet: Path) -> None:
    folder = parquet
    options = {"val_fraction": 0.2, "train_fraction": 0.5, "seed": 1}
    hub = HubDataModule(path=folder, label_column="fine_label", **options, **CIFAR)
    plain = CIFAR100DataModule(cifar_mini, **options)
    for data in (hub, plain):
        data.setup("fit")
    for split in ("train", "val"):
        assert torch.equal(hub.resident(hub.splits[split]), plain.splits[split].images)


@pytest.mark.parametrize(("augmentation", "num_workers"), [("crop", 0), ("resized_crop", 2)])
def test_table_resumes_bitwise_inside_an_epoch(tmp_path: Path, augmentation: str, num_workers: int) -> None:
    path = birds(tmp_path / "birds")
    options = {"num_workers": num_workers, "augmentation": augmentation, "resident_mib": 0, "mean": "imagenet"}
    whole = _fit(small(path, **options), tmp_path / "whole", None)
    resumed = _fit(small(path, **options), tmp_path / "resumed", tmp_path / "whole" / "step=5.ckpt")
    assert len(whole.values) == 8 and resumed.values == whole.values[5:]
    other = small(path, **(options | {"num_workers": 0, "resident_mib": 100}))
    assert _fit(other, tmp_path / "other", None).values == whole.values


def _fit(data: HubDataModule, folder: Path, checkpoint: Path | None) -> Losses:
    """Train for two epochs of four batches, saving after each step."""
    torch.manual_seed(0)
    recorder = Losses()
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    callbacks = [recorder, saving]
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=2, callbacks=callbacks, num_sanity_val_steps=0, limit_val_batches=0, **options)
    trainer.fit(BaselineModule("resnet8", num_classes=3, lr=0.01), data, ckpt_path=checkpoint, weights_only=False)
    return recorder


def test_resuming_with_another_table_is_refused(tmp_path: Path) -> None:
    path = birds(tmp_path / "birds")
    _fit(small(path, mean="imagenet"), tmp_path / "run", None)
    other = birds(tmp_path / "other", train=table([0, 1, 2] * 8, seed=9))
    with pytest.raises(UsageError, match=r"train split is not the one that the resumed run began with.*pictures"):
        _fit(small(other, mean="imagenet"), tmp_path / "resumed", tmp_path / "run" / "step=5.ckpt")


def test_workers_are_handed_no_rows(tmp_path: Path) -> None:
    data = small(birds(tmp_path / "birds", train=table([0, 1, 2] * 400)), mean="imagenet", resident_mib=0)
    data.setup("fit")
    images = data.splits["train"].images
    assert len(pickle.dumps(images.fetch)) < 10_000 < sum(len(row["bytes"]) for row in rows(10)) * 120
    assert torch.equal(torch.from_numpy(images.take([7, 3]).indices), torch.tensor([7, 3]))


def _parquet_folder(folder: Path) -> Path:
    folder.mkdir()
    table([0, 1, 2] * 8).to_parquet(folder / "train.parquet")
    table([2, 1, 0] * 3, seed=1).to_parquet(folder / "test.parquet")
    return folder


def _arrow_folder(folder: Path) -> Path:
    source = birds(folder.with_name("source"))
    folder.mkdir()
    for split in ("train", "test"):
        [file] = (source / split).glob("*.arrow")
        file.rename(folder / f"{split}.arrow")
    return folder


@pytest.mark.parametrize("write", [birds, _parquet_folder, _arrow_folder])
def test_every_local_form_gives_the_same_batches(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    data = small(write(tmp_path / "data"))
    data.setup()
    expected = small(birds(tmp_path / "expected"))
    expected.setup()
    assert data.fingerprints == expected.fingerprints and data.class_names == CLASSES
    for mine, other in zip(data.train_dataloader(), expected.train_dataloader(), strict=True):
        assert all(map(torch.equal, mine, other))


FORMS: dict[str, Callable[[list[bytes], Path], Any]] = {
    "structs of bytes": lambda pictures, folder: [{"bytes": picture} for picture in pictures],
    "absolute paths": lambda pictures, folder: written(pictures, folder),
    "paths from the table": lambda pictures, folder: [os.path.relpath(f, folder) for f in written(pictures, folder)],
    "structs of paths": lambda pictures, folder: [
        {"bytes": None, "path": os.path.relpath(file, folder)} for file in written(pictures, folder)
    ],
}


def written(pictures: list[bytes], folder: Path) -> list[str]:
    """Write pictures next to a table's folder, and return their paths."""
    files = [folder.with_name(f"{number}.png") for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(picture)
    return [*map(str, files)]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_pictures_gives_the_same_batches(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pictures = FORMS[form]([row["bytes"] for row in rows(6)], folder)
    labels = pa.array(["b", "a"] * 3, pa.string_view())
    parquet_files.write_table(pa.table({"image": pictures, "label": labels}), folder / "train.parquet")
    options = {"test_split": "train", "mean": "imagenet"}
    data = small(folder, image_column="image", **options)
    expected = small(saved(tmp_path / "expected", train=table([1, 0] * 3, datasets.Value("int64"))), **options)
    for source in (data, expected):
        source.setup()
    assert data.class_names == ["a", "b"]
    for mine, other in zip(data.train_dataloader(), expected.train_dataloader(), strict=True):
        assert all(map(torch.equal, mine, other))


def test_single_file_and_undivided_table_hold_images_out(tmp_path: Path) -> None:
    table([0, 1, 2] * 8).to_parquet(tmp_path / "birds.parquet")
    table([0, 1, 2] * 8).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "birds.parquet", tmp_path / "saved"):
        data = small(path, val_fraction=0.25)
        data.setup()
        assert [len(data.splits[name].targets) for name in ("train", "val", "test")] == [18, 6, 6]
        with pytest.raises(UsageError, match=r"no split to validate and test on: set .*val_fraction"):
            small(path).setup()


def test_table_of_files_has_the_fingerprint_of_their_folders(tmp_path: Path) -> None:
    for split, labels, seed in (("train", [0, 1, 2] * 8, 0), ("test", [0, 1, 2] * 3, 1)):
        for number, (label, row) in enumerate(zip(sorted(labels), rows(len(labels), seed), strict=True)):
            file = tmp_path / "photos" / split / CLASSES[label] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(row["bytes"])
    splits = {"train": table(sorted([0, 1, 2] * 8)), "test": table(sorted([0, 1, 2] * 3), seed=1)}
    hub = small(saved(tmp_path / "hub", **splits))
    folder = ImageFolderDataModule(tmp_path / "photos", image_size=8, batch_size=6, seed=3, num_workers=0)
    for data in (hub, folder):
        data.setup()
    assert hub.fingerprints == folder.fingerprints and (hub.mean, hub.std) == (folder.mean, folder.std)
    assert losses(hub) == losses(folder)


def test_measured_statistics_are_stored_for_the_same_rows_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = birds(tmp_path / "birds")
    first, again, less = small(path), small(path), small(path, train_fraction=0.5)
    with caplog.at_level("INFO"):
        for data in (first, again, less):
            data.prepare_data()
    assert first.mean == again.mean != less.mean
    assert sum("were measured before" in record.message for record in caplog.records) == 1
    assert not list(path.glob("*.json.*")) and {file.name for file in path.iterdir()} == {
        "dataset_dict.json",
        "train",
        "test",
    }


def test_pictures_are_shown_as_those_of_files(tmp_path: Path) -> None:
    deep = PIL.Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16))
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    turned = PIL.Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    exif = PIL.Image.Exif()
    exif[274] = 3
    pictures = []
    for number, (image, options) in enumerate([(deep, {}), (clear, {}), (turned, {"exif": exif})]):
        image.save(tmp_path / f"{number}.png", **options)
        pictures.append({"bytes": (tmp_path / f"{number}.png").read_bytes(), "path": None})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    made = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 2]}, features=features)
    data = small(saved(tmp_path / "set", train=made, test=made), mean="imagenet")
    data.setup()
    images = torch.cat([images for images, _ in data.test_dataloader()])
    assert images[0].unique().tolist() == [128]  # of 16 bits: scaled, not clipped
    assert images[1].unique().tolist() == [255]  # transparent: white
    assert images[2, :, 0, 0].tolist() == [189, 190, 191]  # turned once


LISTED = {"integers": "int64", "text": "string"}


@pytest.mark.parametrize(
    ("feature", "labels", "names"),
    [
        ("string", ["owl", "cat", "dog"], ["cat", "dog", "owl"]),
        ("int64", [10, 2, 7], ["2", "7", "10"]),
        ("int32", [1, 2, 3], ["1", "2", "3"]),
        ("bool", [True, False, True], ["False", "True"]),
    ],
)
def test_labels_of_text_and_with_gaps_are_numbered_by_name(
    tmp_path: Path, feature: str, labels: list[Any], names: list[str]
) -> None:
    kind = datasets.Value(feature)
    path = saved(tmp_path / "set", train=table(labels * 4, kind), test=table(labels[:2], kind))
    data = small(path, mean="imagenet")
    data.setup()
    assert data.class_names == names and data.num_classes == len(names)
    assert [names[label] for label in data.splits["train"].targets] == [str(label) for label in labels * 4]
    assert [names[label] for label in data.splits["test"].targets] == [str(label) for label in labels[:2]]


def test_names_and_order_of_classes_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = datasets.ClassLabel(names=["owl", "ant", "cat", "bee"])
    path = saved(tmp_path / "set", train=table([0, 2, 3] * 4, kind), test=table([3, 0], kind))
    data = small(path, mean="imagenet")
    with caplog.at_level("INFO"):
        data.setup()
    assert data.class_names == ["owl", "ant", "cat", "bee"]
    assert "has no image of 1 class: ['ant']" in caplog.text or "has no image of 1 class: ant" in caplog.text


def test_validation_split_validates_and_unlabelled_test_split_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = birds(tmp_path / "three", validation=table([0, 1, 2], seed=5), extra=table([0]))
    data = small(path, mean="imagenet")
    with caplog.at_level("INFO"):
        data.setup()
    assert [len(data.splits[name].targets) for name in ("train", "val", "test")] == [24, 3, 9]
    assert "Validating on validation, testing on test" in caplog.text and "splits extra are not used" in caplog.text
    unlabelled = birds(tmp_path / "two", validation=table([0, 1, 2], seed=5), test=table([-1] * 4, seed=1))
    data = small(unlabelled, mean="imagenet")
    with caplog.at_level("INFO"):
        data.setup()
    assert data.splits["val"] is data.splits["test"] and len(data.splits["test"].targets) == 3
    assert "The split test of" in caplog.text and "has no labels and is left out" in caplog.text


@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("in_workers", [False, True])
def test_table_is_a_source_of_unlabelled_images(tmp_path: Path, has_labels: bool, in_workers: bool) -> None:
    made = table([0, 1, 2] * 8)
    path = saved(tmp_path / "set", train=made if has_labels else made.remove_columns("label"))
    for number, row in enumerate(rows(24)):
        file = tmp_path / "pictures" / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(row["bytes"])
    resident_mib = 0 if in_workers else 100
    options = {"image_size": 8, "mean": "imagenet", "seed": 3, "num_workers": 0, "resident_mib": resident_mib}
    labelled = birds(tmp_path / "birds")
    found, expected = (
        HubDataModule(path=labelled, unlabelled=source, **options)
        for source in (small(path), str(tmp_path / "pictures"))
    )
    for data in (found, expected):
        data.setup("fit")
    assert len(found.splits["unlabelled"].targets) == 24 and found.fingerprints == expected.fingerprints
    for mine, other in zip(found.train_dataloader(), expected.train_dataloader(), strict=True):
        assert all(map(torch.equal, mine, other))


BROKEN = {"bytes": b"\x89PNG\r\n\x1a\nbroken", "path": None}


def _with_broken_picture(folder: Path) -> Path:
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=CLASSES))
    pictures = rows(999)
    pictures.insert(500, BROKEN)
    labels = [number % 3 for number in range(1000)]
    made = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    return birds(folder, train=made.cast_column("image", datasets.Image()))


def _text(folder: Path, values: list[Any], kind: str) -> Path:
    return birds(folder, train=table(values, datasets.Value(kind)))


def _with_empty_file(folder: Path) -> Path:
    _parquet_folder(folder)
    table([]).to_parquet(folder / "test.parquet")
    return folder


def _with_file_without_rows(folder: Path) -> Path:
    _parquet_folder(folder)
    rows_of = parquet_files.read_table(folder / "test.parquet")
    parquet_files.write_table(rows_of[:0], folder / "test.parquet")
    return folder


def _with(picture: bytes) -> Any:
    """Return a table with this picture and five others."""
    content = {"image": [{"bytes": picture, "path": None}, *rows(5)], "label": [0, 1, 2] * 2}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    return datasets.Dataset.from_dict(content, features=features)


def _of_paths(paths: list[str]) -> Any:
    return datasets.Dataset.from_dict({"image": paths, "label": [0, 1, 2] * (len(paths) // 3)})


BAD_INPUT: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "missing image column": (birds, {"image_column": "picture"}, r"image_column: .* has no column picture: .*label"),
    "missing label column": (
        birds,
        {"label_column": "labels"},
        r"label_column: .*no column labels: did you mean label\? it has image \(Image\), label \(ClassLabel\)",
    ),
    "image column of another type": (
        birds,
        {"image_column": "label"},
        r"image_column: the column label .* has no pict",
    ),
    "label column of another type": (birds, {"label_column": "image"}, r"label_column: the column image .* has no lab"),
    "labels of floats": (
        lambda folder: _text(folder, [0.5] * 6, "float32"),
        {},
        r"label_column: .* has no column of labels .*: convert one of .*label \(float32\)",
    ),
    "labels under an unusual name": (
        lambda folder: birds(
            folder, train=table([0, 1] * 3, datasets.Value("int64")).rename_column("label", "species")
        ),
        {},
        r"label_column: .* has no column that clearly has labels .*; set it to one of species$",
    ),
    "blank labels": (
        lambda folder: _text(folder, ["a", "b", "", " "] * 3, "string"),
        {"test_split": "train"},
        r"6 rows of 12 in the split train of .* have no label in label: filter them out",
    ),
    "picture of another format": (
        lambda folder: birds(folder, train=_with(png(np.zeros((8, 8, 3), np.uint8), format="TGA"))),
        {},
        r"cannot decode the image .*train\[0\] \(it is none of BMP, GIF, JPEG, PNG.*, or broken\): replace it$",
    ),
    "text that is no path": (
        lambda folder: birds(folder, train=_of_paths(["x" * 5000] * 6)),
        {"image_column": "image", "test_split": "train"},
        r"set, train\[0\]: there is no file xxx.* in the working folder or in .*: write complete paths, or",
    ),
    "two columns of classes": (
        lambda folder: birds(
            folder,
            train=table([0, 1, 2] * 4, shape=([0] * 12, datasets.ClassLabel(names=["a", "b"]))).rename_column(
                "label", "kind"
            ),
        ),
        {},
        r"label_column: .* has several columns of labels .*; set it to one of (kind, shape|shape, kind)$",
    ),
    "empty split": (lambda folder: birds(folder, test=table([])), {}, r"the split test of .* is empty"),
    "empty file": (_with_empty_file, {}, r"set/test.parquet has no rows: remove it, or write it again"),
    "file without rows": (_with_file_without_rows, {}, r"set/test.parquet has no rows: remove it, or write it again"),
    "rows without a label": (
        lambda folder: birds(folder, train=table([0, 1, 2, -1, 0, 1, 2, None] * 3)),
        {},
        r"6 rows of 24 in the split train of .* have no label in label: filter them out",
    ),
    "class of the test split alone": (
        lambda folder: birds(folder, train=table([0, 1] * 6)),
        {},
        r"the split test of .* has the 1 class .*owl.*, of which the training split has no image",
    ),
    "text of the test split alone": (
        lambda folder: saved(
            folder,
            train=table(["a", "b"] * 4, datasets.Value("string")),
            test=table(["a", "c"], datasets.Value("string")),
        ),
        {},
        r"the split test of .* has the 1 class .*c.*, of which the training split has no image",
    ),
    "other classes in the test split": (
        lambda folder: birds(folder, test=table([0, 1, 2], datasets.ClassLabel(names=["cat", "owl", "dog"]))),
        {},
        r"the split test of .* has other classes than the split train",
    ),
    "one class": (
        lambda folder: _text(folder, ["a"] * 6, "string"),
        {"test_split": "train"},
        r"has 1 class: a classifier needs at least two",
    ),
    "misspelt split": (birds, {"train_split": "trian"}, r"train_split: .* no split trian: did you mean train\?"),
    "two splits for training": (
        lambda folder: birds(folder, training=table([0, 1, 2])),
        {},
        r"has the splits train and training for train: set train_split to one",
    ),
    "revision of a folder": (birds, {"revision": "main"}, r"revision has no effect: .*set is a folder or file here"),
    "subset of a folder": (birds, {"subset": "small"}, r"subset has no effect: .*set is a folder or file here"),
    "row without a picture": (
        lambda folder: birds(folder, train=_without_picture()),
        {},
        r"train\[1\] has no picture in the column image: filter such rows out",
    ),
}


@pytest.mark.parametrize("made", [None, 3, datasets.Dataset.from_dict({"label": [0]})])
def test_what_is_no_path_is_refused_in_one_line(made: Any) -> None:
    with pytest.raises(UsageError, match=r"path is a (NoneType|int|Dataset), not a path: name a folder.*save_to_disk"):
        small(made).setup()


def _without_picture() -> Any:
    content = {"image": [rows(1)[0], None, *rows(4)], "label": [0, 1, 2] * 2}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    return datasets.Dataset.from_dict(content, features=features)


def _read(data: HubDataModule) -> None:
    """Read a set as the command line does: first its classes."""
    assert data.num_classes
    data.setup()
    assert data.resident(data.splits["train"]) is not None


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_table_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    write, options, message = BAD_INPUT[case]
    data = small(write(tmp_path / "set"), mean="imagenet", **options)
    with pytest.raises(UsageError, match=message) as raised:
        _read(data)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_one_broken_picture_of_a_thousand_is_named(tmp_path: Path) -> None:
    path = _with_broken_picture(tmp_path / "set")
    data = small(path, mean="imagenet", resident_mib=0, batch_size=100)
    data.setup("fit")
    with pytest.raises(UsageError, match=r"cannot decode the image .*set, train\[500\]"):
        list(data.train_dataloader())


def test_folders_of_images_are_left_to_their_own_module(tmp_path: Path) -> None:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "photos" / "train" / "a.png").write_bytes(rows(1)[0]["bytes"])
    with pytest.raises(UsageError, match=r"photos contains image files: ImageFolderDataModule reads class folders"):
        small(tmp_path / "photos").setup()


def test_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"x.parquet cannot be read as a data set \(.*\): check its files"):
        small(tmp_path / "x.parquet").setup()


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_hub_that_cannot_be_reached_is_named_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UsageError, match=r"neither a folder nor a file here.*127\.0\.0\.1.*HF_HUB_OFFLINE=1") as raised:
        small(name).setup()
    assert "\n" not in str(raised.value)
    assert not [record for record in caplog.records if "Retry" in record.message]


def test_impossible_name_is_refused_without_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hsakd_pl.data.hub.obstacle", lambda: pytest.fail("it asked"))
    with pytest.raises(UsageError, match=r"nor a possible name on the hub: check the path"):
        small(tmp_path / "data" / "missing.parquet").setup()


@pytest.mark.slow
def test_command_line_trains_tests_and_exports_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    birds(tmp_path / "birds")
    fit, test, export = documented("HubDataModule")
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
    main([*fit, *quiet])
    main(test)
    main([*export, "--formats", "safetensors"])
    assert "cat" in (tmp_path / "exported-birds" / "config.json").read_text()
    assert "pictures" in (tmp_path / "runs" / "birds" / "result.json").read_text()
    wrong = [*fit, "--data.label_column", "labels", *quiet]
    message = error_of(capsys, lambda: main(wrong))
    assert message.startswith("label_column: birds has no column labels: did you mean label?")


def test_adopted_description_needs_no_table(tmp_path: Path) -> None:
    path = birds(tmp_path / "birds")
    description = small(path, mean="imagenet").description
    data = small(tmp_path / "gone", predict_dir=tmp_path)
    data.adopt(description)
    assert data.num_classes == 3 and data.label_names() == CLASSES
    with pytest.raises(UsageError, match=r"birds has the classes .*cat.* but the trained network has .*a"):
        small(path).adopt(type(description)(["a", "b", "c"], 8, 8, (0.5,) * 3, (0.5,) * 3))


@pytest.mark.slow
def test_table_resumes_bitwise_on_two_processes(tmp_path: Path) -> None:
    path = birds(tmp_path / "birds")
    run_on_two(table_run.main, "HubDataModule", str(path), str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone, _ = table_run.train("HubDataModule", str(path), tmp_path / "alone")
    for found in ranks:
        assert len(found["whole"]) == 8 and found["resumed"] == found["whole"][5:]
        weights, again = found["weights"]
        assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert ranks[0]["whole"] != ranks[1]["whole"]  # each has half of a batch
    means = [sum(halves) / 2 for halves in zip(*(found["whole"] for found in ranks), strict=True)]
    assert means[0] == pytest.approx(alone[0], rel=0.2)  # but for the statistics of batch norm


def test_relative_path_is_looked_for_in_root_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    birds(tmp_path / "data" / "birds")
    assert small("birds").num_classes == 3
    assert small("data/birds", root="elsewhere").num_classes == 3
    with pytest.raises(UsageError, match=r"path: s3://birds is a URL, a local path is needed"):
        small("s3://birds").setup()
