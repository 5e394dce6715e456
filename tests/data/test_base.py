"""Test what all data modules share: arguments, splits, normalisation, devices, prediction."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torchvision.transforms.v2.functional import to_pil_image

from hsakd_pl.data import DigitsDataModule, ImageDataModule, Split
from hsakd_pl.data.augment import PadCropFlip, random_resized_crop, resized_center_crop
from hsakd_pl.errors import UsageError

MakeTrainer = Callable[..., pl.Trainer]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("train_fraction", 0.0),
        ("train_fraction", 1.5),
        ("val_fraction", 1.0),
        ("val_fraction", -0.1),
        ("seed", -1),
        ("num_workers", -2),
        ("on_error", "ignore"),
    ],
)
def test_data_option_out_of_range_raises_naming_it(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{option} must be .*, got {value}\."):
        DigitsDataModule(**{option: value})


@pytest.mark.parametrize(("option", "value"), [("train_fraction", 0.001), ("val_fraction", 0.999)])
def test_fraction_that_empties_a_class_raises_naming_it(option: str, value: float) -> None:
    data = DigitsDataModule(**{option: value})
    with pytest.raises(UsageError, match=f"{option}={value} "):
        data.setup("fit")


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_few_shot_indices_match_scikit_learn(fraction: float) -> None:
    everything, few = DigitsDataModule(), DigitsDataModule(train_fraction=fraction)
    everything.setup("fit")
    few.setup("fit")
    whole = everything.splits["train"]
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=1 - fraction, random_state=0)
    indices, _ = next(splitter.split(whole.targets, whole.targets))
    assert torch.equal(few.splits["train"].images, whole.images[torch.from_numpy(indices)])
    assert torch.equal(few.splits["train"].targets, whole.targets[torch.from_numpy(indices)])
    assert torch.equal(few.splits["test"].images, everything.splits["test"].images)


def test_val_fraction_leaves_training_and_does_not_read_test_split() -> None:
    class Numbered(DigitsDataModule):
        def read(self, train: bool) -> Split:
            assert train, "the test split must not be read"
            labels = super().read(train).targets
            return Split(torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, -1, -1), labels)

    def held(seed: int, stage: str) -> tuple[list[int], list[int]]:
        data = Numbered(val_fraction=0.2, train_fraction=0.5, seed=seed)
        data.setup(stage)
        return tuple(data.splits[name].images[:, 0, 0, 0].tolist() for name in ("train", "val"))

    train, val = held(0, "fit")
    assert not set(train) & set(val) and len(val) == 126 and len(train) + len(val) == 628
    assert (train, val) == held(0, "validate")
    assert val != held(1, "fit")[1]


def test_validation_on_test_split_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = DigitsDataModule()
        data.setup("fit")
        data.setup("fit")
        DigitsDataModule(val_fraction=0.1).setup("fit")
    assert sum("test split" in record.message for record in caplog.records) == 1
    assert data.splits["val"] is data.splits["test"]


def test_data_seed_defaults_to_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_labels(**arguments: Any) -> list[int]:
        data = DigitsDataModule(**arguments)
        data.setup("fit")
        return next(iter(data.train_dataloader()))[1].tolist()

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert first_labels() == first_labels(seed=7) != first_labels(seed=0)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert first_labels() == first_labels(seed=0)


def test_uint8_images_are_normalised_and_float_images_unchanged() -> None:
    data = DigitsDataModule()
    images = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    normalised, paths = data.on_after_batch_transfer([images, ["a", "b"]], 0)
    assert normalised.dtype == torch.float32 and paths == ["a", "b"]
    torch.testing.assert_close(normalised, torch.full((2, 3, 16, 16), (1 - data.mean[0]) / data.std[0]))
    again, _ = data.on_after_batch_transfer((normalised, paths), 0)
    assert again is normalised


class FloatDataModule(ImageDataModule):
    """Provide images that a user has already normalised, larger than the network's input."""

    num_classes, image_size = 4, 8
    mean = std = (0.5, 0.5, 0.5)
    reads = 0

    def __init__(self, train_transform: Any, **options: Any) -> None:
        super().__init__(**options)
        self.train_transform, self.test_transform = train_transform, resized_center_crop(8, 8)

    def read(self, train: bool) -> Split:
        self.reads += 1
        images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(int(train)))
        return Split(images, torch.arange(12) % 4)


@pytest.mark.parametrize("augment", [True, False])
def test_float_images_are_augmented_read_once_and_not_normalised(augment: bool) -> None:
    data = FloatDataModule(random_resized_crop(8), batch_size=5, augment=augment, num_workers=0)
    for _ in range(2):
        data.setup("fit")
    assert data.reads == 2
    for loader, split in ((data.train_dataloader(), "train"), (data.val_dataloader(), "val")):
        batches = [data.on_after_batch_transfer(batch, 0)[0] for batch in loader]
        assert [tuple(images.shape[1:]) for images in batches] == [(3, 8, 8)] * 3
        assert all(images.dtype == torch.float32 for images in batches)
        if not augment or split == "val":
            expected = resized_center_crop(8, 8)(data.splits[split].images)
            found = torch.cat(batches)
            torch.testing.assert_close(found.flatten().sort().values, expected.flatten().sort().values)
        assert torch.cat(batches).min() < 0  # neither converted to bytes nor scaled


@pytest.mark.parametrize("kind", ["in memory", "by workers"])
def test_device_without_images_gets_empty_batch(kind: str, make_trainer: MakeTrainer) -> None:
    transform = PadCropFlip(padding=1) if kind == "in memory" else random_resized_crop(16)
    data = DigitsDataModule(batch_size=4, num_workers=0)
    data.train_transform = transform
    data.setup("test")
    few, rest = Split(*(part[:2] for part in data.splits["test"])), []
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    for rank in range(4):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=4, num_devices=4, strategy=strategy)
        (batch,) = data._loader(few, None if kind == "in memory" else transform)
        rest.append(tuple(batch[0].shape))
        assert (batch[0].dtype, batch[1].dtype) == (torch.uint8, torch.int64)
    assert rest == [(1, 3, 16, 16)] * 2 + [(0, 3, 16, 16)] * 2


class Counter(pl.LightningModule):
    """Record the batches it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 10)
        self.trained: list[list[int]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        return self.layer(images.mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.trained.append(batch[1].tolist())
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/samples", float(len(self(batch[0]))), reduce_fx="sum")

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[list[tuple[str, str]], torch.Tensor]:
        return batch[1], self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_each_test_image_is_evaluated_once(make_trainer: MakeTrainer) -> None:
    [metrics] = make_trainer().test(Counter(), DigitsDataModule(batch_size=100), verbose=False)
    assert metrics["test/samples"] == 540


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches_repeats_the_same_batches_every_epoch(make_trainer: MakeTrainer) -> None:
    counter = Counter()
    make_trainer(max_epochs=2, overfit_batches=2).fit(counter, DigitsDataModule(batch_size=8))
    assert counter.trained[:2] == counter.trained[2:]


def test_predict_dir_is_searched_recursively_for_images(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    images = torch.randint(256, (3, 3, 20, 40), dtype=torch.uint8)
    names = ["b.png", "a/c.JPEG", "a/d.png"]
    for name, image in zip(names, images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        to_pil_image(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    data = DigitsDataModule(batch_size=2, predict_dir=tmp_path, num_workers=0)
    predictions = make_trainer().predict(Counter(), data)
    assert [len(logits) for _, logits in predictions] == [2, 1]
    found = [pair for sources, _ in predictions for pair in sources]
    assert found == [(path, "") for path in sorted(str(tmp_path / name) for name in names)]
    for images, paths in data.predict_dataloader():
        assert images.shape == (len(paths), 3, 16, 16) and images.dtype == torch.uint8


def test_predict_without_images_raises_naming_predict_dir(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="predict_dir"):
        DigitsDataModule().predict_dataloader()
    for folder, message in ((tmp_path, "no image below {}"), (tmp_path / "missing", "{} does not exist: check")):
        with pytest.raises(UsageError, match=f"predict_dir: {message.format(folder)}"):
            DigitsDataModule(predict_dir=folder).predict_dataloader()


def test_custom_data_module_needs_only_read(make_trainer: MakeTrainer) -> None:
    class Noise(ImageDataModule):
        num_classes = 10
        image_size = 8
        mean = std = (0.5, 0.5, 0.5)
        train_transform = PadCropFlip(padding=1)

        def read(self, train: bool) -> Split:
            count = 50 if train else 20
            return Split(torch.randint(256, (count, 3, 8, 8)).to(torch.uint8), torch.arange(count) % 10)

    counter, data = Counter(), Noise(batch_size=16, train_fraction=0.8)
    make_trainer(max_epochs=1).fit(counter, data)
    assert [len(batch) for batch in counter.trained] == [16, 16, 8]
    assert data.class_names == [str(label) for label in range(10)]
