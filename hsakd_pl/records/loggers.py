"""TensorBoard, Weights & Biases and MLflow: a resumed or tested run continues the run that its logger began."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning import loggers
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import RESULT_FILE


class MLFlowLogger(loggers.MLFlowLogger):
    """Lightning's logger for MLflow, which keeps the first value of an option that a resumed run changes."""

    def log_hyperparams(self, params: Any) -> None:
        from mlflow.exceptions import MlflowException  # an optional package

        with suppress(MlflowException):  # the command line has shown the change, and result.json records it
            super().log_hyperparams(params)


class LoggerKind(NamedTuple):
    """The package that a logger needs, and the argument of its constructor that names the run to continue."""

    package: str
    run_argument: str


LOGGER_KINDS: dict[type[Logger], LoggerKind] = {
    TensorBoardLogger: LoggerKind("tensorboard", "version"),
    WandbLogger: LoggerKind("wandb", "id"),
    loggers.MLFlowLogger: LoggerKind("mlflow", "run_id"),
}


def logger_maker(folder: Path, checkpoint: Mapping[str, Any], training: bool) -> Callable[..., Logger]:
    """Return a function that makes loggers in ``folder``, which continue the run of ``checkpoint``.

    The function raises UsageError if the package of a logger is missing.

    Args:
        folder: folder of the run.
        checkpoint: checkpoint of the run that is resumed or evaluated; empty for a new run.
        training: whether training resumes; entries logged after the checkpoint are then discarded.
    """
    runs = checkpoint.get("loggers", {})

    def make(logger_class: type[Logger], *arguments: Any, **options: Any) -> Logger:
        if options.get("save_dir") == "":
            subfolder = "mlruns" if issubclass(logger_class, loggers.MLFlowLogger) else ""
            options["save_dir"] = str(folder.resolve() / subfolder)  # the service of W&B has its own working folder
        for kind in (LOGGER_KINDS[base] for base in logger_class.__mro__ if base in LOGGER_KINDS):
            if find_spec(kind.package) is None:
                raise UsageError(
                    f"{logger_class.__name__} needs the package {kind.package}: pip install {kind.package}"
                )
            if options.get(kind.run_argument) is None and logger_class.__name__ in runs:
                options[kind.run_argument] = runs[logger_class.__name__]
                if kind.package == "tensorboard" and training:
                    options["purge_step"] = checkpoint.get("global_step")  # hides the steps after the checkpoint
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow-skinny has no other store
        return logger_class(*arguments, **options)

    return make


class LoggedRun(pl.Callback):
    """Store the run of each logger in checkpoints, and log the files of the result when a fit has ended."""

    def on_save_checkpoint(self, trainer: pl.Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        resumable = [logger for logger in trainer.loggers if isinstance(logger, tuple(LOGGER_KINDS))]
        checkpoint["loggers"] = {type(logger).__name__: logger.version for logger in resumable}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        result = folder / RESULT_FILE
        if stage != "fit" or not trainer.is_global_zero or not result.exists():
            return
        pictures = [str(path) for path in (folder / "curves.png",) if path.exists()]
        text = result.read_text()
        row = json.loads(text)
        numbers = {f"result/{name}": value for name, value in row.items() if isinstance(value, int | float)}
        step = trainer.global_step
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
