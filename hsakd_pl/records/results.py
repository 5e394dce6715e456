"""``result.json``: the result of a run and its protocol."""

import json
import subprocess
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files import replacing
from hsakd_pl.files.weights import read_weights, weights_digest
from hsakd_pl.modules import HSAKDModule
from hsakd_pl.modules.budget import (
    check_minimum,
    check_validations,
    is_whole_epoch,
    planned_steps,
    steps_of_epochs,
)
from hsakd_pl.modules.trainers import callbacks_of, is_trial
from hsakd_pl.networks.cost import CountedOnce
from hsakd_pl.networks.network import Classifier
from hsakd_pl.recipes import recipe_of
from hsakd_pl.records.callbacks import Configured, training_callbacks, tuned_values
from hsakd_pl.records.formats import RESULT_FILE, finite, is_finished, of_validation
from hsakd_pl.records.options import CALLBACKS
from hsakd_pl.records.protocol import machine, protocol_of, weight_facts


class ResultWriter(pl.Callback):
    """Write ``result.json`` after every epoch, and once more when training has ended.

    It contains recipe, config files, seed, protocol, number of complete epochs, optimizer steps and how many were
    planned, last and best validation accuracy in [0, 1] and the step of the last validation, all last metrics, cost
    (seconds, device-hours, training images/s of all devices, resumes), parameters, multiply-adds, device, versions,
    commit, and the changes that a resumed run made from some step on. Checkpoints carry this state, so that a run
    without epochs left to train can still write it. A run is ``finished`` when it has taken its planned steps, or when
    early stopping ended it. From the first further step on, a finished run that is extended is unfinished, as its
    checkpoint then is.

    Args:
        folder: folder of the file.
        configs: configuration files of the run.
        seed: seed of the run.
        kept: callback that keeps the best checkpoint.
        options: resolved options of the run.
        configured: callbacks of the configuration, with their options.
    """

    def __init__(
        self,
        folder: str | Path,
        configs: Iterable[str],
        seed: int,
        kept: ModelCheckpoint,
        options: dict[str, Any],
        configured: Configured = (),
    ) -> None:
        self.path = Path(folder, RESULT_FILE)
        self.configs = list(configs)
        self.seed = seed
        self.kept = kept
        self.options = options
        self.configured = configured
        self.callbacks: list[str] | None = None  # that take part in training; None in earlier checkpoints
        self.tuned: dict[str, Any] = {}  # by tuners, by option
        self.changes: list[dict[str, Any]] = []
        self.commit = _commit()
        self.writer = uuid.uuid4().hex  # of this process
        self.spent = {"seconds": 0.0, "train_seconds": 0.0, "images": 0, "resumes": 0}
        self.metrics: dict[str, float | None] = {}
        self.weights: dict[str, Any] = {}
        self.count = CountedOnce()  # of this fit, for other callbacks too
        self.multiply_adds: dict[str, Any] | None = None
        self.best: tuple[float | None, int | None] = (None, None)  # val/acc and its epoch
        self.max_epochs = -1
        self.max_steps = -1
        self.planned_steps: int | None = None
        self.last_val_step: int | None = None
        self.val_metrics: dict[str, float | None] = {}  # of the last validation
        # Number of complete epochs, and of optimizer steps in them; None in checkpoints of earlier versions
        self.ended_epochs: int | None = 0
        self.ended_steps = 0
        self._since_start = 0.0
        self._since_batch = 0.0
        self._trained = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "spent": self.spent | {"seconds": self._seconds()},
            "metrics": self.metrics,
            "options": self.options,
            "changes": self.changes,
            "callbacks": self.callbacks,
            "found": self.tuned,
            "writer": self.writer,
            "weights": self.weights,
            "commit": self.commit,
            "best": self.best,
            "planned_steps": self.planned_steps,
            "last_val_step": self.last_val_step,
            "val_metrics": self.val_metrics,
            "ended_epochs": self.ended_epochs,
            "ended_steps": self.ended_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("writer") == self.writer:  # a tuner restores what this process has saved
            return
        self.spent.update(state_dict.get("spent", state_dict))  # early checkpoints contain nothing else
        self.spent["resumes"] += 1
        self.metrics = state_dict.get("metrics", {})
        self.weights = state_dict.get("weights", {})
        self.best = state_dict.get("best", self.best)
        self.changes[:0] = state_dict.get("changes", [])
        self.callbacks = state_dict.get("callbacks")
        self.planned_steps = state_dict.get("planned_steps")
        self.last_val_step = state_dict.get("last_val_step")
        self.val_metrics = state_dict.get("val_metrics", {})
        self.ended_epochs = state_dict.get("ended_epochs")
        self.ended_steps = state_dict.get("ended_steps", 0)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.max_epochs = trainer.max_epochs or 0  # StochasticWeightAveraging adds an epoch later on
            self.max_steps = trainer.max_steps

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not self.weights:
            self.weights = weight_facts(self.options, getattr(module, "weight_files", {}))
        if trainer.is_global_zero:
            self.count.clear()
            self.multiply_adds = multiply_add_counts(module, getattr(trainer, "datamodule", None), self.count)
        if stopped_early(trainer):  # before, in the resumed run
            trainer.should_stop = True

    def _record_callbacks(self, trainer: pl.Trainer) -> None:
        """Add callbacks that a resumed run adds or leaves out to its changes."""
        callbacks = training_callbacks(callbacks_of(trainer), self.configured)
        before = callbacks if self.callbacks is None else self.callbacks
        self.callbacks = callbacks
        if before != callbacks:
            old = "; ".join(before) or None
            new = "; ".join(callbacks) or None
            step = trainer.global_step
            rank_zero_info(f"From step {step} on, {CALLBACKS} is {new} instead of {old}; result.json records it")
            change = {"option": CALLBACKS, "from": old, "to": new, "epoch": trainer.current_epoch, "step": step}
            self.changes.append(change)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._record_callbacks(trainer)
        self.tuned = tuned_values(self.options, module, getattr(trainer, "datamodule", None))
        if self.ended_epochs is None:
            self.ended_epochs = trainer.current_epoch
            self.ended_steps = steps_of_epochs(trainer, range(trainer.current_epoch)) or trainer.global_step
        self.planned_steps = planned_steps(
            trainer, self.max_epochs, self.max_steps, self.ended_epochs, self.ended_steps
        )
        check_minimum(trainer, self.planned_steps)
        check_validations(trainer, self.max_epochs, self.max_steps)
        self._since_start = time.monotonic()
        self._since_batch = self._since_start  # a resumed epoch has no start of its own

    def on_train_epoch_start(self, *_: Any) -> None:
        self._since_batch = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since_batch = time.monotonic()
        if trainer.sanity_checking:
            return
        self.last_val_step = trainer.global_step
        self.val_metrics = of_validation(finite(trainer.callback_metrics))
        accuracy = self.val_metrics.get("val/acc")
        if accuracy is not None and accuracy > (self.best[0] or -1):
            self.best = (accuracy, trainer.current_epoch + 1)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any, batch: Any, __: int) -> None:
        now = time.monotonic()
        self.spent["train_seconds"] += now - self._since_batch
        self.spent["images"] += len(batch[1]) * trainer.world_size
        self._since_batch = now
        begins = not self._trained
        self._trained = True
        if begins and not is_trial(trainer) and is_finished(self.path):  # its checkpoint is about to be replaced
            self._write(trainer, finished=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.metrics = self.val_metrics | finite(trainer.callback_metrics)
        if is_whole_epoch(trainer):
            self.ended_epochs = trainer.current_epoch + 1
            self.ended_steps = trainer.global_step
        self._write(trainer, finished=False)

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        finished = self._is_finished(trainer)
        if self._trained:
            self.metrics = self.val_metrics | finite(trainer.callback_metrics)
            if not finished:
                rank_zero_info(f"The run is unfinished: it has {self._progress(trainer)}")
            elif self.last_val_step is None and trainer.enable_validation:
                rank_zero_info(
                    "The run ended before its first validation, and its row has no validation accuracy: raise "
                    "trainer.max_epochs or max_steps, or validate more often"
                )
        else:
            self._explain_no_training(trainer, finished)
        if self._trained or (self.metrics and not is_finished(self.path)):
            self._write(trainer, finished)

    def _is_finished(self, trainer: pl.Trainer) -> bool:
        """Return True if the run has taken its planned steps, or if early stopping ended it."""
        if stopped_early(trainer):
            return True
        if self.planned_steps is not None and self._trained:  # otherwise it is the plan of the resumed run
            return trainer.global_step >= self.planned_steps
        has_epochs = 0 <= self.max_epochs <= self._epochs(trainer)
        has_steps = 0 <= self.max_steps <= trainer.global_step
        return has_epochs or has_steps

    def _epochs(self, trainer: pl.Trainer) -> int:
        """Return the number of complete epochs, without the one that StochasticWeightAveraging adds."""
        epochs = trainer.current_epoch if self.ended_epochs is None else self.ended_epochs
        return epochs if self.max_epochs == -1 else min(epochs, self.max_epochs)

    def _progress(self, trainer: pl.Trainer) -> str:
        steps = counted(trainer.global_step, "step")
        if self.planned_steps is not None:
            steps = f"{trainer.global_step:,} of {counted(self.planned_steps, 'step')}"
        return f"{steps}, in {counted(self._epochs(trainer), 'complete epoch')}"

    def _explain_no_training(self, trainer: pl.Trainer, finished: bool) -> None:
        """Log why nothing was trained; raise UsageError unless the run is resumed and has nothing left to train."""
        has_batches = trainer.limit_train_batches != 0 and trainer.num_training_batches != 0
        is_stopped = trainer.should_stop or not (has_batches or is_finished(self.path))
        if stopped_early(trainer):
            rank_zero_info(
                f"Nothing is left to train: early stopping ended the run after {self._progress(trainer)}; to train "
                "further, remove EarlyStopping from trainer.callbacks"
            )
        elif trainer.ckpt_path is not None and (finished or not is_stopped):
            rank_zero_info(f"Nothing is left to train: the run has its {counted(self._epochs(trainer), 'epoch')}")
        else:
            raise UsageError(f"the run has {self._progress(trainer)}, but {_stopping_option(trainer)}")

    def best_so_far(self) -> tuple[float | None, int | None]:
        """Return the best validation accuracy and its epoch; early checkpoints do not contain the epoch."""
        kept = self.kept.best_model_score
        if kept is not None and float(kept) > (self.best[0] or 0):
            return float(kept), None
        return self.best

    def describe_accuracy(self, trainer: pl.Trainer) -> str | None:
        """Return the last and the best validation accuracy and where they were measured; None without any."""
        last = self.metrics.get("val/acc")
        best, best_epoch = self.best_so_far()
        if last is None or best is None or self.last_val_step is None:
            return None
        best_text = f"best {100 * best:.2f} %" + (f" (epoch {best_epoch})" if best_epoch else "")
        return f"{100 * last:.2f} % {self._validated(trainer)}; {best_text}"

    def _validated(self, trainer: pl.Trainer) -> str:
        """Return a phrase that says after which part of the fit the last validation took place."""
        if self.last_val_step != trainer.global_step or not self._is_finished(trainer):
            return f"after step {self.last_val_step:,}, while the run has {self._progress(trainer)}"
        is_whole = self.ended_steps == trainer.global_step
        return f"after epoch {self._epochs(trainer)}, the last" if is_whole else "after the last step"

    def _seconds(self) -> float:
        return self.spent["seconds"] + (time.monotonic() - self._since_start if self._since_start else 0.0)

    def _write(self, trainer: pl.Trainer, finished: bool) -> None:
        if is_trial(trainer) or not trainer.is_global_zero:
            return
        with replacing(self.path) as file:
            json.dump(self._row(trainer, finished), file, indent=1, allow_nan=False)
            file.write("\n")

    def _row(self, trainer: pl.Trainer, finished: bool) -> dict[str, Any]:
        seconds = self._seconds()
        best_val_acc, best_epoch = self.best_so_far()
        max_epochs = None if self.max_epochs == -1 else self.max_epochs
        protocol = protocol_of(self.options, self.changes, self.weights, self.callbacks or [], trainer)
        return {
            "recipe": recipe_of(self.configs),
            "config": self.configs,
            "seed": self.seed,
            "data_seed": self.options.get("data.init_args.seed"),
            "finished": finished,
            "epochs": self._epochs(trainer),
            "steps": trainer.global_step,
            "planned_steps": self.planned_steps,
            "last_val_acc": self.metrics.get("val/acc"),
            "last_val_step": self.last_val_step,
            "best_val_acc": best_val_acc,
            "best_epoch": best_epoch,
            **self._digests(trainer, finished),
            "metrics": self.metrics,
            "protocol": protocol | {"epochs": max_epochs},
            "seconds": round(seconds, 2),
            "device_hours": round(seconds * trainer.world_size / 3600, 4),
            "images_per_second": round(self.spent["images"] / max(self.spent["train_seconds"], 1e-9), 2),
            "resumes": self.spent["resumes"],
            "parameters": parameter_counts(trainer.lightning_module),
            "multiply_adds": self.multiply_adds,
            **machine(trainer),
            "commit": self.commit,
            "teacher_sha256": trainer.lightning_module.hparams.get("teacher_sha256"),
            "changes": self.changes,
        }

    def _digests(self, trainer: pl.Trainer, finished: bool) -> dict[str, str | None]:
        """Return the digests of the last weights and of those of the best epoch, None before the fit has ended.

        They are those of the checkpoints, which may differ from the module, for example if a callback averages weights.
        Without a checkpoint, or if it cannot be read because a user's module stores code in it, the last weights are
        those of the module.
        """
        if not finished:
            return {"weights_digest": None, "best_weights_digest": None}
        last = self.path.with_name("last.ckpt") if trainer.checkpoint_callbacks else None
        module_digest = weights_digest(trainer.lightning_module.state_dict())
        best_file = self.kept.best_model_path
        return {
            "weights_digest": _file_digest(last, trainer.global_step, module_digest),
            "best_weights_digest": _file_digest(Path(best_file) if best_file else None, None, None),
        }


def parameter_counts(module: pl.LightningModule) -> dict[str, Any]:
    """Return the number of parameters that are ``trained``, and that of each network without branches, ``deployed``."""
    networks = module.networks if isinstance(module, HSAKDModule) else []
    return {
        "trained": sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        "deployed": [sum(weight.numel() for weight in network.without_branches.parameters()) for network in networks],
    }


def multiply_add_counts(module: pl.LightningModule, data: Any, count: CountedOnce) -> dict[str, Any] | None:
    """Return the multiply-adds of a forward pass for one image, ``trained`` and, of each network, ``deployed``.

    In training they are those of all trained networks with all views of the image; neither the teacher nor layers that
    a method adds outside of the network are counted. None for data without images, and for networks of other packages.
    """
    image_size = getattr(data, "image_size", None)
    if image_size is None or not isinstance(module, HSAKDModule):
        return None
    networks = list(module.networks)
    if any(isinstance(network, Classifier) for network in networks):
        return None
    deployed = [count(network.without_branches, image_size) for network in networks]
    # branches take part where all transformations of an image do
    trained = [count(network, image_size) for network in networks] if module.views > 1 else deployed
    return {"trained": module.views * sum(trained), "deployed": deployed}


def _file_digest(path: Path | None, step: int | None, otherwise: str | None) -> str | None:
    """Return the digest of the weights in a checkpoint, of this ``step`` unless that is None."""
    try:
        checkpoint = {} if path is None or not path.exists() else read_weights(path)
    except UsageError:
        checkpoint = {}
    is_of_step = step is None or checkpoint.get("global_step") == step
    return weights_digest(checkpoint["state_dict"]) if checkpoint and is_of_step else otherwise


def stopped_early(trainer: pl.Trainer) -> bool:
    """Return True if an EarlyStopping callback has stopped the fit, or had stopped the one that is resumed."""
    for callback in callbacks_of(trainer):
        if not isinstance(callback, EarlyStopping):
            continue
        reason = getattr(callback, "stopping_reason", None)  # since Lightning 2.6; 0 means not stopped
        was_patient = callback.wait_count < max(callback.patience, 1)
        if callback.stopped_epoch or not was_patient or (reason is not None and reason.value):
            return True
    return False


def _stopping_option(trainer: pl.Trainer) -> str:
    """Return what stops a fit before its first step, and the remedy."""
    if trainer.limit_train_batches == 0:
        return "trainer.limit_train_batches is 0: raise it, or leave it out"
    if trainer.num_training_batches == 0:
        return "the training loader has no batches: check the data"
    for callback in callbacks_of(trainer):
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            return (
                "trainer.max_time (Lightning's Timer) is used up, since it counts the time of all starts: raise it or "
                "leave it out"
            )
    return "a callback stopped it before its first step: change or remove that callback"


def _commit() -> str | None:
    """Return the commit of the repository of this file, with ``-dirty`` if files differ; None outside of one."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return None if tracked is None else _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str | None:
    """Return the output of git in the folder of this file, None if it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
