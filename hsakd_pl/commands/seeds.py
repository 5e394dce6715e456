"""Runs of a recipe with one seed each, which ``sweep`` and ``bench`` share."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from jsonargparse import Namespace

from hsakd_pl.cli.arguments import configuration
from hsakd_pl.cli.configuration import options_of
from hsakd_pl.cli.lightning_cli import HSAKDCLI
from hsakd_pl.cli.parser import Parser
from hsakd_pl.data import ImageDataModule
from hsakd_pl.data.fingerprint import SplitFacts, difference, read_facts
from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path
from hsakd_pl.files.escaping import show
from hsakd_pl.files.weights import file_sha256
from hsakd_pl.modules.build import PRETRAINED, RANDOM
from hsakd_pl.records.callbacks import callback_text, takes_part_by_name
from hsakd_pl.records.formats import CONFIG_FILE, RESULT_FILE, is_finished, read_row
from hsakd_pl.records.measured import is_tested
from hsakd_pl.records.options import CALLBACKS, ROOT, WEIGHT_OPTIONS, Role, rule_of
from hsakd_pl.records.protocol import UNSET, is_same_source
from hsakd_pl.runs.signals import STOPPING, Interrupted

SECONDS_TO_OBEY = 5  # a process in the middle of a step obeys a signal after it


class ParsedFit(HSAKDCLI):
    """Parse the options of ``fit`` as they would take effect, without building or running anything."""

    def _set_seed(self) -> None:
        """Seed nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


class TestOfFit(HSAKDCLI):
    """A test with the options of the fit before it, some of which only the fit uses."""

    def _check_used(self) -> None:
        """Accept all options."""

    def _check_limits(self) -> None:
        """Accept a limit of 0, with which a sweep trains without testing."""


def recipe_folder(fit_options: list[str]) -> Path:
    """Return the folder in which these options of ``fit`` put a run; raises UsageError if they name none."""
    parsed = ParsedFit(args=["fit", *fit_options], seed_everything_default=False)
    folder = parsed.config.fit.trainer.default_root_dir
    if folder is None:
        raise UsageError("a sweep needs a folder: set --trainer.default_root_dir")
    return local_path("trainer.default_root_dir", folder)


class Data:
    """The data of options of ``fit``, which are read only when their facts are asked for."""

    def __init__(self, options: Namespace) -> None:
        self.options = options

    @cached_property
    def facts(self) -> dict[str, SplitFacts]:
        """Return what identifies each split; nothing for data modules of other packages."""
        parser = Parser()
        parser.add_lightning_class_args(pl.LightningDataModule, "data", subclass_mode=True)
        data = parser.instantiate_classes(Namespace(data=self.options.data)).data
        if not isinstance(data, ImageDataModule):
            return {}
        data.setup("fit")
        return data.facts


class Setting(NamedTuple):
    """The options, the callbacks, the hashes of the weights, and the data of a run that has not begun."""

    options: dict[str, Any]
    callbacks: str
    hashes: dict[str, str | None]  # of the files that exist, by field of the protocol
    data: Data


def setting_of(fit_options: list[str]) -> Setting:
    """Return the setting that options of ``fit`` describe; raises UsageError for options that are not valid."""
    config = ParsedFit(args=["fit", *fit_options], seed_everything_default=False).config.fit
    options = options_of(config)
    hashes: dict[str, str | None] = {}
    for option, key in WEIGHT_OPTIONS.items():
        source = options.get(f"model.init_args.{option}")
        if source in (None, RANDOM, PRETRAINED):
            hashes[key] = source
        elif local_path(option, source).is_file():
            hashes[key] = file_sha256(source)
    callbacks = config.trainer.callbacks or []
    texts = [callback_text(callback) for callback in (callbacks if isinstance(callbacks, list) else [callbacks])]
    return Setting(options, "; ".join(filter(takes_part_by_name, texts)), hashes, Data(config))


def check_same_setting(folder: Path, setting: Setting) -> None:
    """Raise UsageError if the result in a folder is of other options, callbacks, weights or data than those of now."""
    protocol = read_row(folder / RESULT_FILE).get("protocol")
    if not protocol:
        return  # of an early version
    differing = _changed_options(protocol, setting.options)
    recorded = protocol["options"].get(CALLBACKS) or ""
    if "found" in protocol and not _are_same_callbacks(recorded, setting.callbacks):
        differing.append(f"{CALLBACKS} {recorded or None}, not {setting.callbacks or None}")
    for key, digest in setting.hashes.items():
        if not is_same_source(protocol.get(key, digest), digest):
            differing.append(f"{key} {protocol[key]!s:.12}, not {digest!s:.12}")
    if not differing and _is_elsewhere(folder, setting.options.get(ROOT)):
        differing = _changed_data(protocol, setting.data.facts)
    if differing:
        raise UsageError(
            f"{folder} has the result of other options ({'; '.join(differing)}): repeat those, name another folder, "
            "or remove this one"
        )


def _is_elsewhere(folder: Path, root: Any) -> bool:
    """Return True if the data of a run, of which nothing but the path is read again, were in another folder."""
    if root is None or not (folder / CONFIG_FILE).is_file():
        return False
    data = configuration(str(folder / CONFIG_FILE)).get("data")
    options = data.get("init_args") if isinstance(data, dict) else None
    before = options.get("root") if isinstance(options, dict) else None
    return isinstance(before, str) and Path(before).resolve() != Path(root).resolve()


def _changed_data(protocol: Mapping[str, Any], facts: Mapping[str, SplitFacts]) -> list[str]:
    """Return phrases for the splits that are not those of a protocol."""
    before = read_facts(protocol.get("data") or {}, RESULT_FILE)
    phrases = []
    for split in sorted(before.keys() & facts.keys()):
        changed = difference(before[split], facts[split])
        if changed:
            phrases.append(f"the {split} split differs in {changed}")
    return phrases


def _changed_options(protocol: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Return phrases for the options that decide the result and differ from those of a protocol.

    An option that one of them lacks belongs to another version, unless it is one of a user's optimizer or schedule, or
    protocols leave it out at its usual value.
    """
    before = {**UNSET, **protocol["options"], **{option: options.get(option) for option in protocol.get("found", {})}}
    names = before.keys() & options.keys()
    names |= {name for name in before.keys() ^ options.keys() if name.startswith(("optimizer", "lr_scheduler"))}
    phrases = []
    for name in sorted(names - {CALLBACKS}):
        decides = rule_of(name).role in (Role.RESULT, Role.KEPT)
        if decides and before.get(name) != options.get(name):
            phrases.append(f"{name} {before.get(name)}, not {options.get(name)}")
    return phrases


def _are_same_callbacks(recorded: str, configured: str) -> bool:
    """Return True if the callbacks of a result are the configured ones, and those that its module brought along."""
    others = recorded.removeprefix(configured)
    return recorded.startswith(configured) and "(" not in others


def state_of(folder: Path) -> str:
    """Return whether the run of a folder is ``done``, ``trained`` but not tested, ``begun``, or ``to do``."""
    if is_finished(folder / RESULT_FILE):
        return "done" if is_tested(folder) else "trained"
    return "begun" if (folder / "last.ckpt").exists() else "to do"


def run_seed(seed: int, fit_options: list[str], recipe: Path) -> None:
    """Train with one seed in a folder inside the recipe's, or resume there, and test the result."""
    folder = recipe / f"seed{seed}"
    options = [*fit_options, "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
    if is_finished(folder / RESULT_FILE):
        check_same_setting(folder, setting_of(fit_options))
        show(f"seed {seed} has a result: {folder / RESULT_FILE}")
    else:
        resume = ["--ckpt_path", "last"] if (folder / "last.ckpt").exists() else []
        HSAKDCLI(args=["fit", *options, *resume])
    # with the user's options, not with config.yaml: the folder may be that of somebody else, and never chooses code
    if (folder / "last.ckpt").exists() and not is_tested(folder):
        TestOfFit(args=["test", *options, "--ckpt_path", "last"])


def run_process(arguments: list[str], debug: bool) -> int:
    """Run ``hsakd`` in a process of its own and return its status, 128 + the number of the signal that killed it.

    Raises :class:`Interrupted`, once the process has ended, if a signal stopped either of the two.
    """
    debug_option = ["--debug"] if debug else []
    process = subprocess.Popen([sys.executable, "-m", "hsakd_pl", *arguments, *debug_option])
    try:
        status = process.wait()
    except Interrupted as interruption:
        is_ctrl_c = interruption.status == 128 + signal.SIGINT  # which reaches all processes of a terminal
        _end(process, has_signal=is_ctrl_c)
        raise
    status = status if status >= 0 else 128 - status
    if status - 128 in STOPPING:
        raise Interrupted(status - 128)
    return status


def _end(process: subprocess.Popen[bytes], has_signal: bool) -> None:
    """Terminate a process and wait for it; one that ``has_signal`` is first given time to end by itself."""
    if has_signal:
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_OBEY)
    if process.poll() is None:
        process.terminate()
    process.wait()
