"""Test that a resumed run sees exactly the batches of an uninterrupted one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hsakd_pl.data import ImageDataModule, Split
from hsakd_pl.data.augment import PadCropFlip, random_resized_crop


class RandomImages(ImageDataModule):
    """Provide 26 images in memory, augmented in batches on the device or one by one in workers."""

    num_classes = 2
    image_size = 8
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, in_workers: bool, num_workers: int = 0) -> None:
        super().__init__(batch_size=6, seed=3, num_workers=num_workers)
        self.train_transform = random_resized_crop(8) if in_workers else PadCropFlip(padding=2)

    def read(self, train: bool) -> Split:
        images = torch.randint(256, (26, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        return Split(images.to(torch.uint8), torch.arange(26) % 2)


class Recorder(pl.LightningModule):
    """Record (epoch, batch index) and the images of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3 * 8 * 8, 2)
        self.steps: list[tuple[int, int]] = []
        self.images: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.steps.append((self.current_epoch, batch_idx))
        self.images.append(images.clone())
        return nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/samples", float(len(batch[1])), reduce_fx="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


MakeTrainer = Callable[..., pl.Trainer]


def run(make_trainer: MakeTrainer, data: RandomImages, folder: Path, resume: Path | None, **saving: Any) -> Recorder:
    recorder = Recorder()
    checkpoints = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **saving)
    trainer = make_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[checkpoints], val_check_interval=2)
    trainer.fit(recorder, data, ckpt_path=resume)
    assert trainer.callback_metrics.get("val/samples", 26) == 26
    return recorder


@pytest.fixture(scope="module", params=[False, True], ids=["resident", "workers"])
def whole(request: pytest.FixtureRequest, make_trainer: MakeTrainer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run 3 epochs of 5 batches, saving after each step, each epoch and each validation."""
    folder = tmp_path_factory.mktemp("whole")
    every_step = run(make_trainer, RandomImages(request.param), folder / "step", None, every_n_train_steps=1)
    assert every_step.steps == [(epoch, batch) for epoch in range(3) for batch in range(5)]
    run(make_trainer, RandomImages(request.param), folder / "epoch", None, save_on_train_epoch_end=True)
    run(make_trainer, RandomImages(request.param), folder / "validation", None, save_on_train_epoch_end=False)
    return request.param, every_step, folder


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    ("name", "step"), [("step", 1), ("step", 5), ("step", 8), ("step", 14), ("epoch", 10), ("validation", 7)]
)
def test_data_order_resumes_exactly_from_any_step(
    whole: Any, make_trainer: MakeTrainer, tmp_path: Path, name: str, step: int
) -> None:
    in_workers, expected, folder = whole
    data = RandomImages(in_workers, num_workers=2 if in_workers and step == 8 else 0)
    resumed = run(make_trainer, data, tmp_path, folder / name / f"step={step}.ckpt")
    assert resumed.steps == expected.steps[step:]
    assert all(map(torch.equal, resumed.images, expected.images[step:]))
    assert torch.equal(resumed.layer.weight, expected.layer.weight)
