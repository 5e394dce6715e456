"""LightningCLI for runs that have one folder each, can be interrupted, and resume."""

import shlex
import sys
from argparse import ArgumentError
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]  # __all__ is made at run time
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info

from hsakd_pl.cli.arguments import NEEDED_BY, REPLACED_BY, UNUSED, check_effective, check_order, check_used
from hsakd_pl.cli.configuration import ConfigWriter, changes, check_replaceable, options_of
from hsakd_pl.cli.help import describe_command
from hsakd_pl.cli.mistakes import explain, first_and_last_line, unwrapped
from hsakd_pl.cli.parser import Parser, program, resume_command, run_folder
from hsakd_pl.cpu.threads import share_cores
from hsakd_pl.data import Description, FeatureDataModule, ImageDataModule
from hsakd_pl.data.description import read_description
from hsakd_pl.errors import UsageError
from hsakd_pl.methods import DistilledModule  # noqa: F401  (makes the methods' names known to jsonargparse)
from hsakd_pl.modules import HSAKDModule, LinearProbeModule
from hsakd_pl.modules.optimization import optimizer_error
from hsakd_pl.modules.trainers import callbacks_of, is_trial
from hsakd_pl.records.callbacks import TUNERS, configured_callbacks, restore_tuned_values
from hsakd_pl.records.formats import RESULT_FILE, is_finished
from hsakd_pl.records.loggers import logger_maker
from hsakd_pl.records.observers import observers
from hsakd_pl.records.results import ResultWriter
from hsakd_pl.records.summary import conclusion
from hsakd_pl.runs.accelerator import check_accelerator, check_devices, check_precision, check_strategy
from hsakd_pl.runs.callbacks import (
    Monitors,
    check_callbacks,
    check_counts,
    check_distinct,
    check_not_empty,
    check_resumable,
    explain_part,
    explain_stop,
)
from hsakd_pl.runs.checkpoints import (
    BestCheckpoint,
    LastCheckpoint,
    WholeFiles,
    find_checkpoint,
    read_checkpoint,
    saved_by_this_job,
    saved_checkpoints,
)
from hsakd_pl.runs.processes import match_torchrun, restarts_by_torchrun, sole_writers
from hsakd_pl.runs.states import check_states

LARGEST_SEED = 2**32 - 1  # of NumPy's generators


class HSAKDCLI(LightningCLI):
    """LightningCLI whose model takes its number of classes from the data, and whose runs have one folder each.

    ``trainer.default_root_dir`` receives ``last.ckpt`` (the result), ``best.ckpt``, ``config.yaml``, ``metrics.csv``,
    ``curves.png`` and ``result.json``. A job that SLURM requeued resumes from its own newest checkpoint.
    """

    description: Description | None = None  # of the data that the evaluated checkpoint was trained on

    def __init__(self, model: Any = HSAKDModule, data: Any = pl.LightningDataModule, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "save_config_callback": ConfigWriter,
            "subclass_mode_model": True,
            "subclass_mode_data": True,
            "seed_everything_default": 0,
            "trainer_defaults": {"enable_model_summary": False},  # the package prints its own summary
        }
        given = options.get("args")
        self.arguments = sys.argv[1:] if given is None else list(given)
        super().__init__(model, data, **defaults | options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # called on the instance only
        """Return the subcommand that is called, or all of them if the command line names none.

        Each has the names of the arguments of its method of the trainer that are not options. Only the parser of the
        called one is built, since building a parser takes as long as parsing a command line.
        """
        every = LightningCLI.subcommands()
        called = self.arguments[0] if self.arguments else ""
        return {called: every[called]} if called in every else every

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments; raises UsageError for arguments that the parser refuses."""
        check_order(self.arguments)
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            if not self.arguments or self.arguments[0] not in self._subcommand_parsers:
                raise UsageError(first_and_last_line(str(error))) from error
            options = [action.dest for action in self._subcommand_parsers[self.arguments[0]]._actions]
            raise explain(error, self.arguments, options) from error

    def _parse_ckpt_path(self) -> None:
        """Find and check the checkpoint, without taking its options over as Lightning does."""
        config = self.config.get(str(self.config.get("subcommand")), self.config)
        if not isinstance(config.trainer, Namespace):
            raise UsageError("trainer has no options: add some, or leave trainer out")
        folder = run_folder(config.trainer)
        training = self.config.get("subcommand") == "fit"
        ckpt_path = config.get("ckpt_path")
        if training:  # a requeued job resumes from its own checkpoint
            saved = saved_checkpoints(folder, "last")
            ckpt_path = next(filter(saved_by_this_job, saved), ckpt_path)
            if ckpt_path == "last" and not saved and restarts_by_torchrun():
                rank_zero_info(f"{folder} has no last.ckpt yet: the run begins, and a restart by torchrun resumes it")
                ckpt_path = config.ckpt_path = None
        run_checkpoint: dict[str, Any] = {}
        if ckpt_path is not None:
            path = find_checkpoint(str(ckpt_path), folder)
            config.ckpt_path = str(path)
            checkpoint = read_checkpoint(path, training)
            if not training and "data" in checkpoint:
                self.description = read_description(checkpoint["data"], f"ckpt_path {path}")
            if path.resolve().parent == folder.resolve():  # a file elsewhere belongs to another run
                run_checkpoint = checkpoint
        self.parser.add_instantiator(logger_maker(folder, run_checkpoint, training), Logger)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data", "model.init_args.num_classes", self._num_classes, apply_on="instantiate")
        parser.link_arguments("data", "model.init_args.channels", self._channels, apply_on="instantiate")

    def _described(self, data: pl.LightningDataModule) -> None:
        """Let the data be those that the checkpoint of an evaluation describes."""
        if self.description is not None and isinstance(data, ImageDataModule):
            data.adopt(self.description)

    def _channels(self, data: pl.LightningDataModule) -> int:
        self._described(data)
        return getattr(data, "channels", 3)  # modules of other packages may have none

    def _num_classes(self, data: pl.LightningDataModule) -> int:
        self._described(data)
        if not hasattr(data, "num_classes"):
            raise UsageError(f"{type(data).__name__} has no num_classes: set this attribute to the number of classes")
        return data.num_classes

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        for name, command_parser in self._subcommand_parsers.items():  # all of them read the config.yaml of a fit
            command_parser.add_argument(
                "--cache_features", type=bool, default=False, help="Run a probe's frozen network once per image."
            )
            command_parser.add_argument(
                "--save_every_minutes", type=float, default=10.0, help="Time between two checkpoints within an epoch."
            )
            describe_command(command_parser, name)

    def before_instantiate_classes(self) -> None:
        if self._get(self.config, "lr_scheduler") and not self._get(self.config, "optimizer"):
            raise UsageError(
                "lr_scheduler has no effect without optimizer: set model.init_args.lr_scheduler for a schedule of the "
                "recipe's optimizer"
            )
        self._check_effective()
        if self.subcommand in UNUSED:
            self._check_used()
            return
        trainer = self._get(self.config, "trainer")
        for unit in ("epochs", "steps"):
            least = trainer.get(f"min_{unit}") or 0
            most = trainer.get(f"max_{unit}") or 0
            if 0 < most < least:
                raise UsageError(
                    f"trainer.min_{unit} {least} has no effect: trainer.max_{unit} {most} is less; raise that one, or "
                    f"leave min_{unit} out"
                )

    def _check_effective(self) -> None:
        """Raise UsageError for an option of the command line that the value of another one leaves without effect."""
        deciding = (*REPLACED_BY, *(needed for needed, _ in NEEDED_BY.values()))
        check_effective(self.arguments, {option: self._value_of(option) for option in deciding})

    def _check_used(self) -> None:
        """Raise UsageError for an option of the command line that an evaluation does not use."""
        check_used(self.arguments, str(self.subcommand), self._get(self.config, "ckpt_path"))

    def _check_limits(self) -> None:
        """Raise UsageError for a limit with which an evaluation covers nothing."""
        check_not_empty(self.trainer, str(self.subcommand))

    def _value_of(self, option: str) -> Any:
        """Return the value of an option of the configuration, the trainer or the model; None if it is not set."""
        part, _, name = option.partition(".")
        content = self._get(self.config, part)
        if not name:
            return content
        options = content if part == "trainer" else content.get("init_args")
        return (options or {}).get(name)

    def _set_seed(self) -> None:
        """Seed all generators; raises UsageError for a fit without a seed, and for one that NumPy does not take."""
        seed = self._get(self.config, "seed_everything")
        is_off = seed is False
        if (is_off and self.subcommand == "fit") or not (is_off or 0 <= seed <= LARGEST_SEED):
            raise UsageError(
                f"seed_everything is {seed}: choose a number from 0 to {LARGEST_SEED}, on which shuffling, "
                "augmentation and the row in result.json depend"
            )
        super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; raises their constructors' errors without those that jsonargparse adds.

        Lightning's loggers and callbacks raise a ModuleNotFoundError of their own where a package is missing; unlike
        that of an import, it does not name the module. It becomes a UsageError.
        """
        try:
            super().instantiate_classes()
        except Exception as error:
            original = unwrapped(error)
            if isinstance(original, MisconfigurationException):  # of Lightning's callbacks
                raise UsageError(f"trainer: {' '.join(str(original).split())}") from original
            if isinstance(original, Exception):
                explain_part(original)
            if isinstance(original, ModuleNotFoundError) and original.name is None:
                raise UsageError(str(original)) from original
            if original is error or not isinstance(error, ValueError | ModuleNotFoundError):
                raise
            raise original from original.__cause__

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self._get(self.config_init, "trainer")
        config.default_root_dir = str(run_folder(config))
        if config.benchmark is None:
            config.benchmark = not config.deterministic  # cuDNN tries its algorithms: batches have one size
        check_accelerator(config.accelerator)
        check_strategy(config.strategy)
        match_torchrun(config)
        check_devices(config.devices, config.accelerator)
        check_precision(config.precision, config.accelerator)
        check_counts(config)
        best = BestCheckpoint(config.default_root_dir)
        files = [str(file) for file in self._get(self.config, "config") or []]
        seed = self._get(self.config, "seed_everything", default=0)
        options = options_of(self.config.get(self.subcommand))
        configured = configured_callbacks(config.callbacks, self._get(self.config, "trainer").callbacks)
        check_distinct([callback for callback, _ in configured])
        self.result = ResultWriter(config.default_root_dir, files, seed, best, options, configured)
        if not config.barebones:
            kwargs |= self._recording_options(config, best)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError) as error:  # of options that do not fit together or this machine
            raise UsageError(f"trainer: {' '.join(str(error).split())}") from error
        if config.sync_batchnorm and trainer.strategy.root_device.type != "cuda":
            raise UsageError("trainer.sync_batchnorm needs GPUs: leave it out, or choose --trainer.accelerator gpu")
        environment = trainer._accelerator_connector.cluster_environment
        share_cores(1 if environment.creates_processes_externally else trainer.num_devices)
        return trainer

    def _recording_options(self, config: Namespace, best: BestCheckpoint) -> dict[str, Any]:
        """Return options of the trainer for what a run shows and leaves; its callbacks go to ``trainer_defaults``."""
        options: dict[str, Any] = {}
        if config.logger in (None, True):
            options["logger"] = False  # metrics.csv holds it all
        callbacks = [Monitors(), *observers(config, config.default_root_dir, self.result)]
        if config.enable_checkpointing is not False and not config.fast_dev_run:
            minutes = self._get(self.config, "save_every_minutes", default=10.0)
            last = LastCheckpoint(config.default_root_dir, minutes, resume_command(self.arguments))
            callbacks += [best, last]
            plugins = config.plugins or []
            if not isinstance(plugins, list):
                plugins = [plugins]
            if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
                options["plugins"] = [*plugins, WholeFiles()]
        callbacks = [*self.trainer_defaults.get("callbacks", []), *callbacks]
        self.trainer_defaults["callbacks"] = callbacks  # LightningCLI adds them to those of the configuration
        return options

    def _run_subcommand(self, subcommand: str) -> None:
        writes_nothing = is_trial(self.trainer) or self.trainer.barebones
        writes = subcommand in ("fit", "predict") and not writes_nothing
        with sole_writers(self.trainer) if writes else nullcontext():
            try:
                super()._run_subcommand(subcommand)
            except Exception as error:
                explain_stop(self.trainer, error)
                raise
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.signals.obey_at_end()

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Let the options optimizer and lr_scheduler replace the module's; raises UsageError where they cannot."""
        chosen = self._get(self.config_init, "optimizer")
        if chosen and getattr(self.model, "backbone_lr", None) is not None:
            raise UsageError(
                "backbone_lr has no effect with optimizer: set model.init_args.optimizer instead, which keeps it"
            )
        try:
            super()._add_configure_optimizers_method_to_model(subcommand)
        except ValueError as error:
            if not chosen:
                raise
            raise optimizer_error(str(chosen["class_path"]), error) from error

    def before_fit(self) -> None:
        if self._get(self.config, "cache_features"):
            if not isinstance(self.model, LinearProbeModule):
                raise UsageError(f"cache_features is for a LinearProbeModule, not for {type(self.model).__name__}")
            self.datamodule = FeatureDataModule(self.datamodule, self.model.encode)
        check_callbacks(self.trainer, self.model)
        ckpt_path = self.config_init["fit"]["ckpt_path"]
        if ckpt_path is None:  # a resumed run may have nothing left to train
            check_not_empty(self.trainer, "fit")
        if not is_trial(self.trainer) and not self.trainer.barebones:
            self._check_folder()
        if ckpt_path is not None and self.trainer.checkpoint_callback is not None:
            checkpoint = read_checkpoint(Path(ckpt_path), training=True)
            check_states(self.trainer, checkpoint, f"ckpt_path {ckpt_path}")
            check_resumable(callbacks_of(self.trainer), checkpoint)
            self._keep_tuned_values(checkpoint)
            self._record_changes(checkpoint)

    def _check_folder(self) -> None:
        """Raise UsageError if the fit would replace the result of another run, or of its own without checkpoints."""
        folder = Path(self.trainer.default_root_dir)
        saved = saved_checkpoints(folder, "last")
        has_result = is_finished(folder / RESULT_FILE)
        if not saved and not has_result:
            check_replaceable(folder)
            return
        result = saved[0] if saved else folder / RESULT_FILE
        ckpt_path = self.config_init["fit"]["ckpt_path"]
        remedy = "name another folder with --trainer.default_root_dir"
        if self.trainer.checkpoint_callback is None:
            remedy = f"a fit without checkpoints would replace it in part: {remedy}"
        elif ckpt_path is None:
            remedy = (
                f"resume it with --ckpt_path {result}, or {remedy}" if saved else f"its last.ckpt is missing: {remedy}"
            )
        elif Path(ckpt_path).resolve().parent == folder.resolve():
            return
        else:
            remedy = f"{ckpt_path} belongs to another run: {remedy}"
        raise UsageError(f"{result} is the result of an earlier run: {remedy}")

    def _keep_tuned_values(self, checkpoint: dict[str, Any]) -> None:
        """Let a resumed run keep the values that its tuners found, instead of searching again."""
        state = checkpoint["callbacks"].get(self.result.state_key, {})
        callbacks = callbacks_of(self.trainer)
        tuners = [callback for callback in callbacks if isinstance(callback, TUNERS)]
        if not tuners or "found" not in state:
            return
        for tuner in tuners:
            callbacks.remove(tuner)
        restore_tuned_values(state["found"], self.model, self.datamodule)
        values = ", ".join(f"{option} {value:g}" for option, value in state["found"].items()) or "none"
        rank_zero_info(f"The tuners do not search again: the values that the resumed run found stay ({values})")

    def _record_changes(self, checkpoint: dict[str, Any]) -> None:
        """Log the options that differ from those of the resumed run, and add them to the result."""
        state = checkpoint["callbacks"].get(self.result.state_key, {})
        if not state.get("options"):
            return
        commit = {"commit": self.result.commit}
        before = state["options"] | {"commit": state.get("commit", self.result.commit)}
        epoch = checkpoint["epoch"]
        step = checkpoint["global_step"]
        for option, (old, new) in changes(before, self.result.options | commit).items():
            rank_zero_info(f"From step {step} on, {option} is {new} instead of {old}; result.json records it")
            self.result.changes.append({"option": option, "from": old, "to": new, "epoch": epoch, "step": step})

    def before_test(self) -> None:
        """Raise UsageError unless the network is trained, or explicitly untrained, and something is evaluated."""
        self._check_limits()
        if self._get(self.config_init, "ckpt_path") is not None:
            return
        if self.model.hparams.get("weights") is None:
            raise UsageError(
                f"{self.subcommand} needs a trained network: name a checkpoint with --ckpt_path, or a file with "
                "--model.init_args.weights (random: weights of a fresh network)"
            )
        interrupted = saved_checkpoints(self.trainer.default_root_dir, "hpc")  # in SLURM Lightning would take it
        if interrupted:
            raise UsageError(f"{interrupted[0]} was left by an interrupted run: remove it, or name it with --ckpt_path")

    before_validate = before_test

    def before_predict(self) -> None:
        """Keep no predictions in memory: they are written batch by batch."""
        self.before_test()
        self.config_init["predict"]["return_predictions"] = False

    def after_fit(self) -> None:
        folder = self.trainer.default_root_dir
        if not self.trainer.is_global_zero or not Path(folder, "last.ckpt").exists():
            return
        test = ["test", "--config", str(Path(folder, "config.yaml")), "--ckpt_path", "last"]
        next_steps = [test, ["report", folder], ["export", folder]]
        commands = [shlex.join([*program(), *words]) for words in next_steps]
        print(conclusion(folder, self.result.describe_accuracy(self.trainer), commands), flush=True)
