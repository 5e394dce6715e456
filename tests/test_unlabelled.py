"""Test unlabelled images next to labelled ones: what is in a batch, which methods take them, and exact resuming."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import CLASSES, TEACHER, Losses, error_of, history, run, trainer
from torch import Tensor
from torchvision.io import write_png

from hsakd_pl import (
    BaselineModule,
    EmbeddingModule,
    LinearProbeModule,
    MutualModule,
    STL10DataModule,
    StudentModule,
    TeacherModule,
    UnlabelledDataModule,
    methods,
)
from hsakd_pl.cli.main import main
from hsakd_pl.data import ImageDataModule, Split
from hsakd_pl.data.augment import PadCropFlip, random_resized_crop
from hsakd_pl.data.unlabelled import UnlabelledSampler
from hsakd_pl.errors import UsageError


class Numbered(ImageDataModule):
    """40 images of 8 x 8 pixels, each of one grey level, its number; 8 others for testing."""

    num_classes = CLASSES
    image_size = 8
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, in_workers: bool = False, **options: Any) -> None:
        super().__init__(**{"batch_size": 4, "seed": 3, "num_workers": 0, **options})
        self.train_transform = random_resized_crop(8) if in_workers else PadCropFlip(padding=0)

    def read(self, train: bool) -> Split:
        numbers = torch.arange(40) if train else torch.arange(100, 108)
        return Split(numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous(), numbers % CLASSES)


def rest(**options: Any) -> Numbered:
    return Numbered(train_fraction=0.2, unlabelled="rest", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with 6 pictures of 10 x 12 pixels, of the grey levels 200 to 205, in two subfolders."""
    for number in range(200, 206):
        path = tmp_path / "pictures" / f"part{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(torch.full((3, 10, 12), number, dtype=torch.uint8), str(path))
    return tmp_path / "pictures"


def batches(data: ImageDataModule, epoch: int = 0) -> list[tuple[Tensor, Tensor]]:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [(images[:, 0, 4, 4].long(), labels) for images, labels in loader]


@pytest.mark.parametrize("in_workers", [False, True], ids=["resident", "one by one"])
@pytest.mark.parametrize("ratio", [1, 3.5, 0.25])
def test_rest_of_the_training_images_follows_the_labelled_ones(ratio: float, in_workers: bool) -> None:
    data = rest(unlabelled_ratio=ratio, in_workers=in_workers)
    plain = Numbered(train_fraction=0.2, in_workers=in_workers)
    found = batches(data)
    labelled = set(data.splits["train"].images[:, 0, 0, 0].tolist())
    for (numbers, labels), (alone, expected) in zip(found, batches(plain), strict=True):
        assert torch.equal(numbers[: len(labels)], alone) and torch.equal(labels, expected)
        others = numbers[len(labels) :].tolist()
        assert len(others) == round(ratio * len(labels))
        assert labelled.isdisjoint(others) and max(others) < 40


def unlabelled_of(data: ImageDataModule, epochs: int) -> list[int]:
    found = [batch for epoch in range(epochs) for batch in batches(data, epoch)]
    return [number for numbers, labels in found for number in numbers[len(labels) :].tolist()]


def test_each_unlabelled_image_is_seen_once_before_any_is_seen_again() -> None:
    seen = unlabelled_of(rest(unlabelled_ratio=2), epochs=4)
    assert len(seen) == 64 and len(set(seen[:32])) == len(set(seen[32:])) == 32
    assert seen[:32] != seen[32:]
    assert seen == unlabelled_of(rest(unlabelled_ratio=2), epochs=4)


def test_devices_share_each_batch() -> None:
    options: dict[str, Any] = {"num_samples": 10, "batch_size": 4, "shuffle": True, "seed": 1, "pool": 7, "ratio": 2}
    whole = list(UnlabelledSampler(**options))
    parts = [list(UnlabelledSampler(**options, rank=rank, world_size=2)) for rank in range(2)]
    for number, batch in enumerate(whole):
        shared = torch.cat([part[number] for part in parts])
        assert sorted(shared.tolist()) == sorted(batch.tolist())


SOURCES: dict[str, Callable[[Path], Any]] = {
    "folder": lambda folder: str(folder),
    "folders": lambda folder: [str(folder / "part0"), str(folder / "part1")],
    "data module": lambda folder: UnlabelledDataModule(folder, val_fraction=0.01, image_size=8, mean="imagenet"),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("in_workers", [False, True], ids=["resident", "one by one"])
def test_pictures_of_other_sources_are_resized(kind: str, in_workers: bool, folder: Path) -> None:
    data = Numbered(unlabelled=SOURCES[kind](folder), in_workers=in_workers)
    images = unlabelled_of(data, epochs=1)
    assert set(images) <= set(range(200, 206)) and len(set(images)) >= 5
    assert data.splits["unlabelled"].targets.unique().tolist() == [-1]
    assert data.fingerprints.keys() == {"train", "test", "unlabelled"}


def test_binary_of_stl10_is_read_without_a_copy(tmp_path: Path) -> None:
    pixels = np.arange(5 * 3 * 96 * 96, dtype=np.uint32).astype(np.uint8).reshape(5, 3, 96, 96)
    pixels.tofile(tmp_path / "unlabeled_X.bin")
    data = Numbered(unlabelled=tmp_path / "unlabeled_X.bin", unlabelled_ratio=1)
    batches(data)
    assert torch.equal(data.splits["unlabelled"].images, torch.from_numpy(pixels).transpose(2, 3))
    assert isinstance(STL10DataModule(tmp_path, unlabelled=tmp_path / "unlabeled_X.bin"), ImageDataModule)


TAKES = {
    "KDModule": {},
    "AttentionModule": {},
    "DISTModule": {},
    "CTKDModule": {},
    "FitNetModule": {"image_size": 8},
    "RKDModule": {},
    "SimilarityModule": {},
    "SimKDModule": {"image_size": 8},
    "SRRLModule": {"image_size": 8},
    "StandardizedKDModule": {},
    "TTMModule": {},
    "VIDModule": {"image_size": 8},
    "MLKDModule": {},
    "CRLDModule": {},
    "ABKDModule": {},
    "CATKDModule": {},
    "CorrelationModule": {},
    "LDRLDModule": {"top_classes": 3},
    "NormKDModule": {},
    "PKTModule": {},
    "ReviewKDModule": {"image_size": 8},
    "StandardizedABKDModule": {},
    "WTTMModule": {},
}
REFUSES = ("CRDModule", "DKDModule", "NKDModule", "RLDModule", "SDDDKDModule", "SDDModule", "SSKDModule", "WKDModule")


def method(name: str, **options: Any) -> StudentModule:
    return getattr(methods, name)("resnet8", num_classes=CLASSES, fast=False, **TEACHER, **options)


@pytest.mark.parametrize("name", TAKES)
def test_method_without_labels_trains_on_all_images(name: str) -> None:
    module = method(name, **TAKES[name])
    losses = Losses()
    trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[losses]).fit(module, rest(unlabelled_ratio=2))
    assert len(losses.values) == 1


def test_every_method_is_known_to_take_unlabelled_images_or_not() -> None:
    students = {name for name in methods.__all__ if name.endswith("Module")}
    others = {"DistilledModule", "DMLModule", "SSKDProjectionModule"}
    assert students - others == {*TAKES, *REFUSES}
    assert [name for name in REFUSES if getattr(methods, name).uses_unlabelled] == []


def test_terms_of_unlabelled_images_change_distillation_alone() -> None:
    module = method("KDModule", ce_weight=1.0)
    module.eval()
    images = torch.randn(6, 3, 8, 8)
    labels = torch.tensor([0, 1])
    terms, of_two = module.losses((images, labels)), module.losses((images[:2], labels))
    assert torch.allclose(terms["loss_ce"], of_two["loss_ce"])
    parts = [module.losses((part, labels))["loss_kd"] for part in images.split(2)]
    assert torch.allclose(terms["loss_kd"], torch.stack(parts).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StudentModule("resnet8", num_classes=CLASSES, **TEACHER),
        lambda: methods.DMLModule(["resnet8", "resnet8"], num_classes=CLASSES),
        lambda: EmbeddingModule("resnet8", "resnet14", teacher_weights="random", teacher_mean="data"),
    ],
    ids=["HSAKD", "DML", "embedding"],
)
def test_other_modules_train_on_all_images(make: Callable[[], Any]) -> None:
    trainer(limit_train_batches=2, limit_val_batches=1).fit(make(), rest())


REFUSED: dict[str, Callable[[], Any]] = {
    "BaselineModule": lambda: BaselineModule("resnet8", num_classes=CLASSES),
    "TeacherModule": lambda: TeacherModule("resnet8", num_classes=CLASSES),
    "MutualModule": lambda: MutualModule(["resnet8", "resnet8"], num_classes=CLASSES),
    "LinearProbeModule": lambda: LinearProbeModule("resnet8", CLASSES, "random"),
    "DKDModule": lambda: method("DKDModule"),
    "CRDModule": lambda: method("CRDModule"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_module_that_needs_labels_says_so(name: str) -> None:
    with pytest.raises(UsageError, match=f"unlabelled: {name} needs the label of every image"):
        trainer().fit(REFUSED[name](), rest())


def test_kept_answers_are_refused_next_to_unlabelled_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="teacher_answers must be left out with unlabelled images"):
        trainer().fit(method("KDModule", teacher_answers=str(tmp_path)), rest())


FAULTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "unlabelled must be left out with train_fraction 1": lambda folder: {"unlabelled": "rest"},
    "unlabelled_ratio must be above 0, and finite, got 0": lambda folder: {"unlabelled_ratio": 0},
    "missing does not exist: check the path": lambda folder: {"unlabelled": folder / "missing"},
    "missing.bin does not exist: check the path": lambda folder: {"unlabelled": folder / "missing.bin"},
    "not a multiple of 27648": lambda folder: {"unlabelled": folder / "short.bin"},
    "no image below": lambda folder: {"unlabelled": folder / "empty"},
    "cannot be joined with other sources": lambda folder: {"unlabelled": [str(folder), str(folder / "short.bin")]},
}


@pytest.mark.parametrize("message", FAULTS)
def test_bad_sources_are_one_line(message: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "short.bin").write_bytes(b"123")
    with pytest.raises(UsageError) as error:
        Numbered(**FAULTS[message](folder)).setup("fit")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_classifier_of_pictures_without_labels_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs at least 2 classes, got 0: name data .* choose EmbeddingModule"):
        BaselineModule("resnet8", num_classes=0)


def test_broken_picture_is_named(folder: Path) -> None:
    (folder / "part0" / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UsageError, match=r"cannot decode the image .*broken\.png"):
        batches(Numbered(unlabelled=folder, unlabelled_ratio=7))


@pytest.mark.parametrize("workers", [0, 2])
def test_run_stopped_inside_an_epoch_resumes_bit_by_bit(
    workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    options = {"unlabelled": str(folder), "unlabelled_ratio": 0.5, "num_workers": workers, "batch_size": 16}
    common: dict[str, Any] = {
        "module": "methods.KDModule",
        "model": {"init_args": {**TEACHER, "image_size": 16}},
        "data": {"init_args": options},
    }
    limits = {"limit_train_batches": 4, "limit_val_batches": 1, "max_epochs": 2}
    run("fit", trainer={**limits, "default_root_dir": "whole"}, **common)
    stop = {"class_path": "test_interruptions.Signal", "init_args": {"signum": 15, "at": 5}}
    with pytest.raises(SystemExit):
        run("fit", trainer={**limits, "default_root_dir": "part", "callbacks": [stop]}, **common)
    run("fit", "--ckpt_path", "last", trainer={**limits, "default_root_dir": "part"}, **common)
    whole, part = (torch.load(f"{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "part"))
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())
    assert history("whole") == history("part")
    if workers:
        return
    (folder / "part0" / "200.png").unlink()
    message = error_of(
        capsys,
        lambda: main(["fit", "--config", "part/config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3"]),
    )
    assert "the unlabelled split is not the one" in message


def test_folder_alone_validates_by_cosine_or_on_a_labelled_folder(folder: Path, tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "sorted" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(torch.full((3, 8, 8), 30 * number, dtype=torch.uint8), str(path))
    make = EmbeddingModule
    common: dict[str, Any] = {"teacher_weights": "random", "teacher_mean": "data"}
    options: dict[str, Any] = {"image_size": 8, "batch_size": 4, "num_workers": 0}
    fit = trainer()
    fit.fit(make("resnet8", "resnet14", **common), UnlabelledDataModule(folder, val_fraction=0.5, **options))
    assert "val/cosine" in fit.callback_metrics and "val/acc" not in fit.callback_metrics
    fit = trainer()
    fit.fit(make("resnet8", "resnet14", **common), UnlabelledDataModule(folder, tmp_path / "sorted", **options))
    assert fit.callback_metrics.keys() >= {"val/cosine", "val/acc", "val/linear_acc"}
    with pytest.raises(UsageError, match="val_fraction: nothing validates"):
        UnlabelledDataModule(folder, mean="imagenet", **options).setup("fit")


def test_best_epoch_without_labels_is_that_of_the_cosine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    data = {"root": str(folder), "val_fraction": 0.5, "image_size": 16, "num_workers": 0, "batch_size": 2}
    run(
        "fit",
        module="EmbeddingModule",
        model={"init_args": {"teacher": "resnet14", "teacher_weights": "random", "teacher_mean": "data"}},
        data={"class_path": "hsakd_pl.UnlabelledDataModule", "init_args": data},
    )
    best = torch.load("runs/EmbeddingModule/best.ckpt", weights_only=True)
    assert best["embedding"] == 64 and best["data"]["class_names"] == []
