"""TensorBoard, Weights & Biases and MLflow: a run of theirs for a run of ours, however often it is resumed."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning import loggers
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from hsakd_pl.errors import UsageError


class MLFlowLogger(loggers.MLFlowLogger):
    """Lightning's, for runs that go on with other options: of each MLflow keeps the first value."""

    def log_hyperparams(self, params: Any) -> None:
        from mlflow.exceptions import MlflowException  # an optional package

        with suppress(MlflowException):  # the command line has told what is changed, and the row will
            super().log_hyperparams(params)


# package, and the argument of the constructor that says which run goes on
KINDS: dict[type[Logger], tuple[str, str]] = {
    TensorBoardLogger: ("tensorboard", "version"),
    WandbLogger: ("wandb", "id"),
    loggers.MLFlowLogger: ("mlflow", "run_id"),
}


def logger_maker(folder: Path, checkpoint: Mapping[str, Any]) -> Callable[..., Logger]:
    """Give what makes a logger in ``folder`` that goes on with ``checkpoint``'s run; UsageError without its package."""
    begun, step = checkpoint.get("loggers", {}), checkpoint.get("global_step")

    def make(kind: type[Logger], *arguments: Any, **options: Any) -> Logger:
        if options.get("save_dir") == "":
            inside = "mlruns" if issubclass(kind, loggers.MLFlowLogger) else ""
            options["save_dir"] = str(folder.resolve() / inside)  # W&B's service has a working folder of its own
        for package, argument in (KINDS[known] for known in kind.__mro__ if known in KINDS):
            if find_spec(package) is None:
                raise UsageError(f"{kind.__name__} needs the package {package}: pip install {package}")
            if options.get(argument) is None and kind.__name__ in begun:
                options[argument] = begun[kind.__name__]
                options |= {"purge_step": step} if package == "tensorboard" else {}  # hides what the kill undid
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other store
        return kind(*arguments, **options)

    return make


class LoggedRun(pl.Callback):
    """Keeps in checkpoints which run of each logger this is, and logs in the end the files of the result."""

    def on_save_checkpoint(self, trainer: pl.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        known = [logger for logger in trainer.loggers if isinstance(logger, tuple(KINDS))]
        checkpoint["loggers"] = {type(logger).__name__: logger.version for logger in known}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        result, curves = (Path(trainer.default_root_dir, name) for name in ("result.json", "curves.png"))
        if stage != "fit" or not trainer.is_global_zero or not result.exists():
            return
        text, pictures, step = result.read_text(), [str(curves)] if curves.exists() else [], trainer.global_step
        row = json.loads(text)
        numbers = {f"result/{name}": value for name, value in row.items() if isinstance(value, int | float)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(pl_module.hparams_initial), numbers, step)
                logger.experiment.add_text("result", indent(text, "    "), step)  # Markdown's code
                for picture in pictures:
                    logger.experiment.add_image("curves", np.asarray(Image.open(picture)), step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.experiment.summary.update({"result": row})
                for picture in pictures:
                    logger.log_image("curves", [picture])
            elif isinstance(logger, loggers.MLFlowLogger):
                logger.log_metrics(numbers, step)
                for file in [str(result), *pictures]:
                    logger.experiment.log_artifact(logger.run_id, file)
