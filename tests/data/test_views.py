"""Test the second, strongly augmented view of training images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from hsakd_pl import ImageFolderDataModule
from hsakd_pl.data import ImageDataModule
from hsakd_pl.errors import UsageError

from . import test_resume
from .test_resume import RandomImages, Recorder, run


class TwoViews(Recorder):
    """Record batches of two views."""

    needs_strong_view = True

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return super().training_step((images, labels.repeat(2)), batch_idx)


def views_of(make_trainer: Any, data: ImageDataModule, module: Recorder, epochs: int = 1) -> list[Tensor]:
    make_trainer(max_epochs=epochs, limit_val_batches=0).fit(module, datamodule=data)
    return module.images


@pytest.mark.parametrize("in_workers", [False, True])
def test_usual_view_is_that_of_other_modules(make_trainer, in_workers: bool) -> None:
    plain = views_of(make_trainer, RandomImages(in_workers), Recorder())
    both = views_of(make_trainer, RandomImages(in_workers), TwoViews())
    for images, views in zip(plain, both, strict=True):
        usual, strong = views.chunk(2)
        assert torch.equal(usual, images)
        assert strong.shape == usual.shape
        differing = (strong != usual).flatten(1).any(1)
        assert differing.all()


def test_strong_views_differ_between_epochs_and_images(make_trainer) -> None:
    data = RandomImages(in_workers=False)
    images = views_of(make_trainer, data, TwoViews(), epochs=2)
    strong = torch.cat([views.chunk(2)[1] for views in images])
    assert len(strong.flatten(1).unique(dim=0)) > 0.95 * len(strong)


def test_strong_view_is_an_augmented_view_of_the_same_image(make_trainer) -> None:
    """Give every image its own colour of unequal channels: most strong views keep the order of the channels' means."""

    class Colours(RandomImages):
        def read(self, train: bool) -> Any:
            split = super().read(train)
            colours = torch.tensor([[200, 120, 60], [60, 120, 200]], dtype=torch.uint8)
            split.images[:] = colours[split.targets][:, :, None, None]
            return split

    module = TwoViews()
    orders = []
    for views in views_of(make_trainer, Colours(in_workers=False), module):
        usual, strong = views.chunk(2)
        reddish = [view[:, 0].sum((1, 2)) > view[:, 2].sum((1, 2)) for view in (usual, strong)]
        orders.append(reddish[0] == reddish[1])
    assert torch.cat(orders).float().mean() > 0.7  # colours may be inverted or lose their saturation


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("in_workers", [False, True])
def test_both_views_resume_inside_an_epoch_with_any_number_of_workers(
    make_trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_workers: bool
) -> None:
    monkeypatch.setattr(test_resume, "Recorder", TwoViews)
    whole = run(make_trainer, RandomImages(in_workers), tmp_path / "whole", None, every_n_train_steps=1)
    data = RandomImages(in_workers, num_workers=2)
    resumed = run(make_trainer, data, tmp_path / "resumed", tmp_path / "whole" / "step=8.ckpt")
    assert resumed.steps == whole.steps[8:]
    assert all(map(torch.equal, resumed.images, whole.images[8:]))


@pytest.mark.parametrize("resident_mib", [0, 1024])
@pytest.mark.parametrize("augmentation", ["crop", "resized_crop"])
def test_strong_views_of_image_files(make_trainer, tmp_path: Path, augmentation: str, resident_mib: int) -> None:
    generator = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / f"{number}.png")
    options: dict[str, Any] = {"image_size": 8, "batch_size": 4, "num_workers": 0, "mean": "imagenet"}
    data = ImageFolderDataModule(
        tmp_path, augmentation=augmentation, resident_mib=resident_mib, val_fraction=0.34, **options
    )
    images = views_of(make_trainer, data, TwoViews())
    assert [views.shape for views in images] == [torch.Size([6, 3, 8, 8])] or images[0].shape[1:] == (3, 8, 8)
    assert all(views.isfinite().all() for views in images)


def test_strong_view_without_augmentation_raises(make_trainer) -> None:
    data = RandomImages(in_workers=False)
    data.augment = False
    with pytest.raises(UsageError, match="augment is off, but the module trains on a strongly augmented view"):
        views_of(make_trainer, data, TwoViews())


def test_subclass_replaces_the_strong_transform(make_trainer) -> None:
    class Black(RandomImages):
        def strong_transform(self, resized: bool) -> Any:
            assert resized
            return torch.zeros_like

    for views in views_of(make_trainer, Black(in_workers=False), TwoViews()):
        assert torch.equal(views.chunk(2)[1], torch.full((len(views) // 2, 3, 8, 8), -1.0))


def test_random_numbers_of_others_are_left_alone(make_trainer) -> None:
    draws = []
    for module in (Recorder(), TwoViews()):
        pl.seed_everything(0)
        views_of(make_trainer, RandomImages(in_workers=False), module)
        draws.append(torch.rand(1))
    assert torch.equal(*draws)
