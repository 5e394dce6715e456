"""What a run shows while it goes, and leaves in its folder: callbacks that watch, and change nothing."""

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
    """Make the callbacks that watch a run with these options of its trainer and write into ``folder``."""
    history = History(folder)
    steps = StepLossLogger([history] if options.log_every_n_steps else [])
    found: list[pl.Callback] = [PredictionWriter(folder), EvaluationWriter(folder), steps, history, result]
    if options.logger not in (None, True, False) and not options.fast_dev_run:
        found += [LearningRateMonitor(), LoggedRun()]
    if options.enable_progress_bar is not False:
        chosen = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]
        found += [Introduction()]
        found += [] if any(isinstance(callback, ProgressBar) for callback in chosen) else [Progress()]
    return found
