"""An interrupted and resumed run sees exactly the batches of an uninterrupted one."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hsakd_pl.data.augment import PadCropFlip, random_resized_crop
from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.splits import Split


class RandomImages(ImageDataModule):
    """26 images in memory, batch-augmented on the device or one by one in workers."""

    num_classes = 2
    image_size = 8
    mean = (0.5,) * 3
    std = (0.5,) * 3

    def __init__(self, in_workers: bool, num_workers: int = 0) -> None:
        super().__init__(batch_size=6, seed=3, num_workers=num_workers)
        self.train_transform = random_resized_crop(8) if in_workers else PadCropFlip(padding=2)

    def read(self, train: bool) -> Split:
        images = torch.randint(256, (26, 3, 8, 8), generator=torch.Generator().manual_seed(0))
        return Split(images.to(torch.uint8), torch.arange(26) % 2)


class Recorder(pl.LightningModule):
    """Keeps (epoch, batch index, images) of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 2)
        self.seen: list[tuple[int, int, Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append((self.current_epoch, batch_idx, images.clone()))
        return nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/count", float(len(batch[1])), reduce_fx="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(data: RandomImages, folder: Path, resume: Path | None = None, **checkpointing) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **checkpointing)],
    )
    trainer.fit(recorder, data, ckpt_path=resume)
    return recorder


def assert_same(resumed: Recorder, whole: Recorder, steps_before: int) -> None:
    expected = whole.seen[steps_before:]
    assert [step[:2] for step in resumed.seen] == [step[:2] for step in expected]
    assert all(torch.equal(mine[2], theirs[2]) for mine, theirs in zip(resumed.seen, expected, strict=True))
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.parametrize("in_workers", [False, True])
@pytest.mark.parametrize("step", range(1, 15))
def test_resume_after_any_step(tmp_path: Path, in_workers: bool, step: int) -> None:
    whole = run(RandomImages(in_workers), tmp_path, every_n_train_steps=1)
    assert len(whole.seen) == 15  # 5 batches, the last one of 2 images
    resumed = run(RandomImages(in_workers), tmp_path / "resumed", tmp_path / f"step={step}.ckpt")
    assert_same(resumed, whole, step)
