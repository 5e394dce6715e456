"""The command line: ``fit``, ``validate``, ``test`` and ``predict`` by LightningCLI, and what stands beside them."""

import logging
import os
import re
import sys
import warnings
from argparse import ArgumentParser
from importlib import import_module
from importlib.util import find_spec

from lightning_fabric.utilities.exceptions import MisconfigurationException

from hsakd_pl.errors import UsageError
from hsakd_pl.runs.lightning_cli import COMMANDS, HSAKDCLI
from hsakd_pl.runs.parser import check_files, one_error
from hsakd_pl.runs.signals import Interrupted, stopped_by_signals

USER_MISTAKES = (UsageError, OSError, ModuleNotFoundError, UnicodeError, MisconfigurationException)
# What Lightning says of itself and of what is not there; the package tells the rest in its own words
ADVERTS = r"Seed set|GPU available|TPU available|💡|LOCAL_RANK|`Trainer\.fit` stopped: `max_|Using .* Mixed Precision"
if find_spec("pl_bolts"):
    import_module("hsakd_pl.integrations.bolts")  # so that a configuration may name what is in it


def main(args: list[str] | None = None) -> None:
    """Run the command line on ``args`` (by default those of the process); a user's mistake ends it with status 2."""
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists")  # logs/ lies beside the checkpoints
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # a sweep passes them on
    warnings.filterwarnings("ignore", "Couldn't infer the batch indices")  # predictions name their files
    warnings.filterwarnings("ignore", "The number of training batches .* is smaller")  # epochs are logged as well
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*Progress'\\]")  # switched off now
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # by PyTorch, for Lightning to mend
    for module in (
        "pytorch_lightning.utilities.rank_zero",
        "pytorch_lightning.accelerators.cuda",
        "lightning_fabric.utilities.seed",
    ):
        logging.getLogger(module).addFilter(_is_no_advert)
    given = sys.argv[1:] if args is None else args
    try:
        with stopped_by_signals():
            _run(given, args)
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Interrupted as signal:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(signal, file=sys.stderr)
        raise SystemExit(signal.status) from None
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, USER_MISTAKES):
            cause = cause.__cause__  # jsonargparse wraps what a constructor raises
        if cause is None:
            raise
        remedy = ": use --trainer.accelerator cpu" if "backend found" in str(cause) else ""
        print(f"error: {cause}{remedy}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_no_advert(record: logging.LogRecord) -> bool:
    return not re.match(ADVERTS, record.getMessage())


def _run(given: list[str], args: list[str] | None) -> None:
    check_files(given)
    pictures = given[:1] == ["predict"] and len(given) > 1 and not given[1].startswith("-")
    if pictures or (given[:1] and given[0] in COMMANDS):
        command = import_module("hsakd_pl.runs.predict" if pictures else COMMANDS[given[0]][0])
        parser = ArgumentParser(f"hsakd {given[0]}", description=command.__doc__, allow_abbrev=False)
        parser.error = one_error  # type: ignore[method-assign]
        command.command(parser, given[1:])
    else:
        HSAKDCLI(args=args)
