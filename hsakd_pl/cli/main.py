"""The command line: ``fit``, ``validate``, ``test`` and ``predict`` by LightningCLI, and what stands beside them."""

import logging
import os
import re
import sys
import warnings
from importlib import import_module

from hsakd_pl.cli.arguments import check_files
from hsakd_pl.cli.commands import COMMANDS, PICTURES, make_parser
from hsakd_pl.cli.help import help_for
from hsakd_pl.errors import UsageError, did_you_mean
from hsakd_pl.runs.interrupted import Interrupted, stopped_by_signals

USER_MISTAKES = (UsageError, OSError, ModuleNotFoundError, UnicodeError)
# What Lightning says of itself and of what is not there; the package tells the rest in its own words
ADVERTS = r"Seed set|GPU available|TPU available|💡|LOCAL_RANK|`Trainer\.fit` stopped: `max_|Using .* Mixed Precision"


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
    if args is None and os.getcwd() not in sys.path and not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())  # as python does for a script there, so that the user's modules are found
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
        while cause is not None and not _is_mistake(cause):
            cause = cause.__cause__  # jsonargparse wraps what a constructor raises
        if cause is None:
            raise
        remedy = ": use --trainer.accelerator cpu" if "backend found" in str(cause) else ""
        print(f"error: {cause}{remedy}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_no_advert(record: logging.LogRecord) -> bool:
    return not re.match(ADVERTS, record.getMessage())


def _is_mistake(error: BaseException) -> bool:
    return isinstance(error, USER_MISTAKES) or type(error).__name__ == "MisconfigurationException"  # Lightning's


def _run(given: list[str], args: list[str] | None) -> None:
    check_files(given)
    if (text := help_for(given)) is not None:
        print(text)
        raise SystemExit(0 if given else 2)
    name = given[0]
    if name not in COMMANDS and not name.startswith("-"):
        raise UsageError(f"there is no command {name}: {did_you_mean(name, COMMANDS)}'hsakd --help' lists them")
    pictures = name == "predict" and len(given) > 1 and not given[1].startswith("-")
    module = PICTURES if pictures else name in COMMANDS and COMMANDS[name].module
    if module:
        parser = make_parser(name, module)
        parser.error = import_module("hsakd_pl.cli.mistakes").one_error  # type: ignore[method-assign]
        import_module(module).command(parser, given[1:])
    else:
        import_module("hsakd_pl.cli.lightning_cli").HSAKDCLI(args=args)
