"""The callbacks that record a run."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor, ProgressBar

from hsakd_pl.records.history import History
from hsakd_pl.records.loggers import LoggedRun
from hsakd_pl.records.predictions import PredictionWriter
from hsakd_pl.records.progress import Progress
from hsakd_pl.records.results import ResultWriter
from hsakd_pl.records.summary import Introduction
from hsakd_pl.records.tested import EvaluationWriter
from hsakd_pl.records.watched import StepLossLogger


def observers(options: Any, folder: str, result: ResultWriter) -> list[pl.Callback]:
    """Return the callbacks that record a run into ``folder``, for these options of its trainer."""
    history = History(folder)
    step_loss = StepLossLogger([history] if options.log_every_n_steps else [])
    callbacks: list[pl.Callback] = [
        PredictionWriter(folder, option="trainer.default_root_dir"),
        EvaluationWriter(folder),
        step_loss,
        history,
        result,
    ]
    if options.logger not in (None, True, False) and not options.fast_dev_run:
        callbacks += [LearningRateMonitor(), LoggedRun()]
    if options.enable_progress_bar is not False:
        callbacks.append(Introduction(result.count))
        configured = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]
        if not any(isinstance(callback, ProgressBar) for callback in configured):
            callbacks.append(Progress())
    return callbacks
