"""The command line: ``fit``, ``validate``, ``test`` and ``predict`` by LightningCLI, and what stands beside them."""

import os
import re
import sys
import warnings
from argparse import ArgumentParser
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.data import FeatureDataModule
from hsakd_pl.errors import UsageError
from hsakd_pl.modules import HSAKDModule, LinearProbeModule
from hsakd_pl.runs.predictions import PredictionWriter
from hsakd_pl.runs.report import ResultWriter
from hsakd_pl.runs.requeue import RequeueBetweenSteps, saved_by_this_job, saved_checkpoints
from hsakd_pl.weights import read_weights

COMMANDS = {  # each is a module beside this one
    "sweep": "Train a recipe with several seeds, one after the other, and show their mean.",
    "report": "Show the results of all runs below a folder.",
    "recipes": "List the paper's experiments, or write their configurations into a folder.",
}
HPC = "hpc_ckpt_*.ckpt"  # what Lightning saves before SLURM ends a job
USER_MISTAKES = (UsageError, FileNotFoundError, MisconfigurationException)
if find_spec("pl_bolts"):
    import_module("hsakd_pl.integrations.bolts")  # so that a configuration may name what is in it


class HSAKDCLI(LightningCLI):
    """LightningCLI whose model takes its number of classes from the data, and whose runs lie in one folder each.

    ``trainer.default_root_dir`` receives ``last.ckpt`` (the result), ``best.ckpt`` and ``logs/version_k/``. A job that
    SLURM requeued continues from the newest checkpoint it wrote itself.
    """

    def __init__(self, model: Any = HSAKDModule, data: Any = pl.LightningDataModule, **options: Any) -> None:
        usual = {"subclass_mode_model": True, "subclass_mode_data": True, "seed_everything_default": 0}
        super().__init__(model, data, **{**usual, **options})

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        # subcommands have parsers of their own, all made here: the instance is the one place to reach them
        parser.error = _one_error  # type: ignore[method-assign, assignment]
        return parser

    def _parse_ckpt_path(self) -> None:
        """Check the file, and leave the configuration as it is: Lightning would overwrite it with the checkpoint's."""
        path = self.config.get(str(self.config.get("subcommand")), {}).get("ckpt_path")
        if path not in (None, "best", "last", "hpc") and "pytorch-lightning_version" not in read_weights(path):
            raise UsageError(f"ckpt_path {path} is no Lightning checkpoint: weights go to model.init_args.weights")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data", "model.init_args.num_classes", compute_fn=_num_classes, apply_on="instantiate")

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        for name, line in COMMANDS.items():  # so that --help lists them: main runs them
            assert parser._subcommands_action is not None
            parser._subcommands_action.add_subcommand(name, LightningArgumentParser(), help=line)
        self._subcommand_parsers["fit"].add_argument(
            "--cache_features", type=bool, default=False, help="show a probe's frozen network each image but once"
        )

    def before_instantiate_classes(self) -> None:
        if self._get(self.config, "lr_scheduler") and not self._get(self.config, "optimizer"):
            raise UsageError(
                "lr_scheduler has no effect without optimizer beside it: "
                "model.init_args.lr_scheduler is the schedule of the recipe's own optimizer"
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self._get(self.config_init, "trainer")
        folder = config.default_root_dir = config.default_root_dir or "runs"
        if config.benchmark is None:
            config.benchmark = not config.deterministic  # cuDNN tries its algorithms: batches have one size
        if config.logger in (None, True):
            kwargs["logger"] = CSVLogger(folder, name="logs")
        saved = partial(ModelCheckpoint, folder, enable_version_counter=False)
        self.best = saved(filename="best", monitor="val/acc", mode="max")
        last = saved(filename="last", save_on_train_epoch_end=True)
        files = [str(file) for file in self._get(self.config, "config") or []]
        result = ResultWriter(folder, files, self._get(self.config, "seed_everything", default=0), self.best)
        callbacks: list[pl.Callback] = [PredictionWriter(folder), result, RequeueBetweenSteps()]
        if config.enable_checkpointing is not False and not config.fast_dev_run:
            callbacks += [self.best, last]
        if config.logger is not False and not config.fast_dev_run:
            callbacks += [LearningRateMonitor()]
        self.trainer_defaults["callbacks"] = callbacks  # LightningCLI adds them to those of the configuration
        trainer = super().instantiate_trainer(**kwargs)
        if config.sync_batchnorm and trainer.strategy.root_device.type != "cuda":
            raise UsageError("trainer.sync_batchnorm needs GPUs: leave it out, or choose --trainer.accelerator gpu")
        return trainer

    def before_fit(self) -> None:
        if self._get(self.config, "cache_features"):
            if not isinstance(self.model, LinearProbeModule):
                raise UsageError(f"cache_features is for a LinearProbeModule, not for {type(self.model).__name__}")
            self.datamodule = FeatureDataModule(self.datamodule, self.model.encode)
        saves = self.trainer.checkpoint_callback is not None
        found = saved_checkpoints(self.trainer.default_root_dir, ("last.ckpt", HPC) if saves else (HPC,))
        own = next(filter(saved_by_this_job, found), None)
        if own is not None:
            self.config_init["fit"]["ckpt_path"] = str(own)
        elif found and not self._get(self.config, "ckpt_path"):
            raise UsageError(
                f"{found[0]} is the result of an earlier run: resume it with --ckpt_path {found[0]}, "
                "or name another folder with --trainer.default_root_dir"
            )

    def before_test(self) -> None:
        """Lightning would take what an interrupted run left in the folder for the weights to evaluate."""
        found = saved_checkpoints(self.trainer.default_root_dir, (HPC,))
        if found and SLURMEnvironment.detect() and not self._get(self.config, "ckpt_path"):
            raise UsageError(
                f"{found[0]} was left by an interrupted run: name the checkpoint to use with --ckpt_path, "
                "or another folder with --trainer.default_root_dir"
            )

    before_validate = before_predict = before_test

    def after_fit(self) -> None:
        if self.trainer.is_global_zero:  # finished: nothing to continue
            for path in saved_checkpoints(self.trainer.default_root_dir, (HPC,)):
                path.unlink()
        metrics = self.trainer.callback_metrics
        if "val/acc" in metrics and self.best.best_model_score is not None:
            rank_zero_info(
                f"val/acc: last epoch {100 * metrics['val/acc']:.2f} % (the result), "
                f"best epoch {100 * self.best.best_model_score:.2f} %"
            )


def _num_classes(data: pl.LightningDataModule) -> int:
    if not hasattr(data, "num_classes"):
        raise UsageError(f"{type(data).__name__} has no num_classes: a data module says how many classes it has")
    return data.num_classes


def _one_error(message: str, *_: Any) -> NoReturn:
    """Report what the configuration gets wrong, without the pages of usage that the parser puts around it."""
    if "No module named 'pl_bolts'" in message:
        import_module("hsakd_pl.integrations.bolts")  # raises the error that says how to install it
    if unknown := re.search(r"class_path '(\S+)':\s+Option '(\S+)' is not accepted", message):
        group = "data" if "DataModule" in unknown[1] else "model"
        message = f"{unknown[1]} has no option {unknown[2]!r}: 'fit --{group}.help {unknown[1]}' lists those it has"
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _check_yaml(args: list[str]) -> None:
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        path = Path(flag.partition("=")[2] if flag.startswith("--config=") else value)
        if flag in ("-c", "--config") or flag.startswith("--config="):
            try:
                yaml.safe_load(path.read_text() if path.is_file() else "")
            except yaml.YAMLError as error:
                raise UsageError(f"{path} is no valid YAML: {error}") from error


def main(args: list[str] | None = None) -> None:
    """Run the command line on ``args`` (by default those of the process); a user's mistake ends it with status 2."""
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists")  # logs/ lies beside the checkpoints
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # a sweep passes them on
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices")  # predictions name their files
    given = sys.argv[1:] if args is None else args
    try:
        _check_yaml(given)
        if given[:1] and given[0] in COMMANDS:
            command = import_module(f"hsakd_pl.runs.{given[0]}")
            parser = ArgumentParser(f"hsakd {given[0]}", description=command.__doc__, allow_abbrev=False)
            parser.error = _one_error  # type: ignore[method-assign, assignment]
            command.command(parser, given[1:])
        else:
            HSAKDCLI(args=args)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, USER_MISTAKES):
            cause = cause.__cause__  # jsonargparse wraps what a constructor raises
        if cause is None:
            raise
        remedy = ": use --trainer.accelerator cpu" if "backend found" in str(cause) else ""
        print(f"error: {cause}{remedy}", file=sys.stderr)
        raise SystemExit(2) from None
