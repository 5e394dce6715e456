"""Correct the last accumulated step of an epoch, and tell among how many images the losses of a batch compare."""

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.modules.budget import accumulated_batches
from hsakd_pl.modules.evaluated import EvaluatedModule


def window_weight(trainer: pl.Trainer) -> float:
    """Return the factor that makes the current optimizer step the mean over the batches that it accumulates.

    Lightning divides each loss by ``accumulate_grad_batches``, also where fewer batches are left in an epoch: of 10
    batches by 4, the third step has 2, and half the gradient. The factor is 1 in all other steps.
    """
    full = trainer.accumulate_grad_batches
    batch_idx = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
    left = trainer.num_training_batches - batch_idx // full * full  # infinite for a loader without a length
    return full / min(full, left)


def compared_images(trainer: pl.Trainer, module: pl.LightningModule) -> int | None:
    """Return the number of images among which losses of a batch compare; None without such losses, or if unknown."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if not isinstance(module, EvaluatedModule) or not module.batch_terms or batch_size is None:
        return None
    return int(batch_size) if module.gathers_batch else int(batch_size) // trainer.world_size


def log_compared_images(trainer: pl.Trainer, module: EvaluatedModule) -> None:
    """Log that losses of a batch see fewer images than an optimizer step has, if they do."""
    batches = accumulated_batches(trainer, trainer.current_epoch)
    devices = 1 if module.gathers_batch else trainer.world_size
    if not module.batch_terms or batches * devices == 1:
        return
    images = compared_images(trainer, module)
    seen = "the images of one batch on one device" if images is None else f"{images} images"
    rank_zero_info(
        f"{' and '.join(module.batch_terms)}: computed from {seen} at a time, 1 of {batches * devices} parts of an "
        f"optimizer step (accumulate_grad_batches {batches}, devices {trainer.world_size}); results differ from those "
        "of one undivided batch"
    )
