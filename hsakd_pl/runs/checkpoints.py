"""Checkpoints of a run: found by keyword, checked before Lightning reads them, written whole or not at all."""

import io
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from hsakd_pl.errors import UsageError, require
from hsakd_pl.files import local_path, replacing
from hsakd_pl.files.weights import read_weights
from hsakd_pl.modules.budget import accumulated_batches, is_whole_epoch
from hsakd_pl.modules.trainers import callbacks_of
from hsakd_pl.records.formats import check_checkpoint
from hsakd_pl.records.results import stopped_early
from hsakd_pl.runs.callbacks import announce, resumes_inside_epochs
from hsakd_pl.runs.signals import Signals
from hsakd_pl.runs.states import check_callback_states, check_optimizers, check_parts, check_schedules

FILES_BY_KEYWORD = {"last": ("last.ckpt", "hpc_ckpt_*.ckpt"), "best": ("best.ckpt",), "hpc": ("hpc_ckpt_*.ckpt",)}
EVALUATION_PARTS: dict[str, type] = {"state_dict": dict, "pytorch-lightning_version": str}
TRAINING_PARTS: dict[str, type] = EVALUATION_PARTS | {
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
}
STEPS_BETWEEN_AGREEMENTS = 8  # of several processes on what each of them received


def saved_checkpoints(folder: str | Path, keyword: str) -> list[Path]:
    """Return the files in ``folder`` that a keyword means, the newest first: the package's own and Lightning's."""
    paths = [path for pattern in FILES_BY_KEYWORD[keyword] for path in Path(folder).glob(pattern)]
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def find_checkpoint(ckpt_path: str, folder: str | Path) -> Path:
    """Resolve ``last``, ``best``, ``hpc`` or a path to a file; raises UsageError where there is none."""
    if ckpt_path not in FILES_BY_KEYWORD:
        return local_path("ckpt_path", ckpt_path)
    paths = saved_checkpoints(folder, ckpt_path)
    if not paths:
        names = " or ".join(FILES_BY_KEYWORD[ckpt_path])
        raise UsageError(f"ckpt_path {ckpt_path}: {folder} has no {names}: name the file, or leave ckpt_path out")
    return paths[0]


def read_checkpoint(path: Path, training: bool) -> dict[str, Any]:
    """Read a checkpoint with all that evaluation, or ``training``, needs; raises UsageError for any other file."""
    content = read_weights(path)
    if not isinstance(content, dict):
        content = {}
    parts = TRAINING_PARTS if training else EVALUATION_PARTS
    missing = [part for part, kind in parts.items() if not isinstance(content.get(part), kind)]
    if missing or not all(isinstance(tensor, torch.Tensor) for tensor in content["state_dict"].values()):
        lacks_weights = bool(EVALUATION_PARTS.keys() & {*missing})
        remedy = "weights go to model.init_args.weights" if lacks_weights else "it holds weights alone"
        raise UsageError(
            f"ckpt_path {path} is not a Lightning checkpoint, {', '.join(missing) or 'a tensor'} is missing: {remedy}"
        )
    check_checkpoint(content, f"ckpt_path {path}")
    check_callback_states(content, f"ckpt_path {path}")
    if training:
        check_parts(content, f"ckpt_path {path}")
    return content


def saved_by_this_job(path: Path) -> bool:
    """Return whether an earlier start of this SLURM job, before it was requeued, wrote the checkpoint."""
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
    return requeued and read_weights(path).get("slurm_job") == os.environ["SLURM_JOB_ID"]


class WholeFiles(TorchCheckpointIO):
    """Write checkpoints under a temporary name in the same folder and rename them once they are on the disk.

    Lightning writes into the system's folder for temporary files: from another file system its last step is a copy, and
    a process that is killed leaves half of a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # PyTorch itself does not survive a full disk
        torch.save(checkpoint, content)
        with replacing(path, "wb") as file:
            file.write(content.getbuffer())


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, of the epoch with the highest ``val/acc``, wherever the run's folder has been moved.

    A module may name another metric, its ``headline``.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "best", monitor="val/acc", mode="max", enable_version_counter=False)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.monitor = getattr(pl_module, "headline", self.monitor)
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find the state of checkpoints that were written when this class was Lightning's own."""
        states = checkpoint["callbacks"]
        lightnings_state = states.get(self.state_key.replace("Best", "Model", 1))
        if lightnings_state is not None:
            states.setdefault(self.state_key, lightnings_state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores; the paths are those of this run's folder."""
        old = str(state_dict["dirpath"])
        moved = {key: _moved(value, old, str(self.dirpath)) for key, value in state_dict.items()}
        super().load_state_dict(moved)


class LastCheckpoint(ModelCheckpoint):
    """Save ``last.ckpt`` after every epoch, every few minutes within an epoch, and when a signal stops the run.

    A signal takes effect after an optimizer step, the same one in all processes; one that arrives with the last
    batch of an epoch waits for the validation after it, and one during validation ends the run with what the epoch has
    saved.

    Args:
        folder: folder of the run.
        every_minutes: time between two checkpoints within an epoch.
        resume_command: command line that resumes the run.
    """

    def __init__(self, folder: str | Path, every_minutes: float, resume_command: str) -> None:
        super().__init__(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        require(every_minutes > 0, "save_every_minutes", every_minutes, "above 0")
        self.seconds = 60 * every_minutes
        self.saved_at = 0.0
        self.signals = Signals(str(Path(folder, "last.ckpt")), resume_command)
        self._max_steps: int | None = None
        self._resumed: dict[str, Any] | None = None  # checkpoint, from its loading to the start of the fit
        self._stops = False  # after the next optimizer step
        self._saves_inside_epochs = True
        self._saved_step = 0

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit":
            self._resumed = checkpoint

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hide ``max_steps`` while Lightning restores its loops, after this hook and before ``on_train_start``.

        With it, Lightning repeats the end of an epoch that is complete, and trains the next one on other batches.
        """
        check_schedules(config.scheduler for config in trainer.lr_scheduler_configs)
        if self._resumed is not None:
            check_optimizers(trainer, self._resumed, f"ckpt_path {trainer.ckpt_path}")
            self._resumed = None
        if trainer.ckpt_path is not None:
            self._max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = -1

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show_max_steps(trainer)  # no step was left to train

    def _show_max_steps(self, trainer: pl.Trainer) -> None:
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._max_steps
            self._max_steps = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.signals.take_over(trainer)  # workers are started from here on, and inherit what a signal does

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._show_max_steps(trainer)
        callbacks = callbacks_of(trainer)
        self._saves_inside_epochs = resumes_inside_epochs(callbacks)
        self._saved_step = trainer.global_step
        announce(callbacks)
        # GradientAccumulationScheduler sets it when an epoch starts, which a resumed epoch does not do again
        trainer.accumulate_grad_batches = accumulated_batches(trainer, trainer.current_epoch)
        self.signals.take_over(trainer)
        self.saved_at = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.save()
        if trainer.current_epoch and self._agreed(trainer, bool(self.signals.received)):
            self.signals.obey(trainer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._postpone_stop(trainer)
        if not self._validates_next(trainer):
            self._save_when_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._postpone_stop(trainer)
            self._save_when_due(trainer)

    def _validates_next(self, trainer: pl.Trainer) -> bool:
        """Return True if a validation follows, which a run resumed from here would leave out."""
        loop = trainer.fit_loop
        return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)

    def _postpone_stop(self, trainer: pl.Trainer) -> None:
        """Let a stop take effect after an optimizer step: checkpoints do not contain accumulated gradients."""
        has_stepped = _has_stepped(trainer)
        if has_stepped:
            trainer.should_stop = trainer.should_stop or self._stops
        self._stops = trainer.should_stop and not has_stepped
        trainer.should_stop = trainer.should_stop and has_stepped

    def _save_when_due(self, trainer: pl.Trainer) -> None:
        """Save inside an epoch, after an optimizer step, if it is time to or if a signal has arrived."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if trainer.is_last_batch or not _has_stepped(trainer):
            return
        if trainer.world_size > 1 and batches % STEPS_BETWEEN_AGREEMENTS:
            return
        is_signalled = bool(self.signals.received)
        is_due = time.monotonic() > self.saved_at + self.seconds
        if self._agreed(trainer, is_signalled or is_due):
            for logger in trainer.loggers:
                logger.save()
            if self._saves_inside_epochs:
                trainer.save_checkpoint(self._path(), weights_only=False)
                self._saved_step = trainer.global_step
            self.saved_at = time.monotonic()
            if self._agreed(trainer, is_signalled):
                self.signals.obey(trainer, self._saved_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_unfinished = trainer.should_stop and not is_whole_epoch(trainer) and not stopped_early(trainer)
        if is_unfinished and not self._saves_inside_epochs:
            return  # the run is resumed from the end of the epoch before
        super().on_train_epoch_end(trainer, pl_module)
        self.saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["slurm_job"] = os.environ.get("SLURM_JOB_ID")
        progress: Any = trainer.fit_loop.epoch_progress.current  # declared as one without these counts
        if progress.processed > progress.completed and _has_stepped(trainer) and not is_whole_epoch(trainer):
            _reopen_epoch(checkpoint["loops"]["fit_loop"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: the file has one name, in this run's folder."""

    def _path(self) -> str:
        return str(Path(str(self.dirpath), "last.ckpt"))

    def _agreed(self, trainer: pl.Trainer, decision: bool) -> bool:
        """Return whether any of the processes decided so."""
        return bool(trainer.strategy.reduce_boolean_decision(decision, all=False))


def _has_stepped(trainer: pl.Trainer) -> bool:
    """Return True if the last batch ended with an optimizer step, False while gradients are accumulated."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return batches % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def _reopen_epoch(fit_loop: dict[str, Any]) -> None:
    """Change the state of a fit that was stopped inside an epoch, so that it resumes at the next batch.

    When it is stopped, by ``max_steps`` or a callback, Lightning counts the epoch as processed. The state becomes that
    of the end of the last batch's step.
    """
    for counts in ("total", "current"):
        fit_loop["epoch_progress"][counts]["processed"] -= 1
        fit_loop["epoch_loop.batch_progress"][counts]["completed"] -= 1
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def _moved(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {_moved(key, old, new): score for key, score in value.items()}
    if isinstance(value, str) and value.startswith(old):
        return new + value.removeprefix(old)
    return value
