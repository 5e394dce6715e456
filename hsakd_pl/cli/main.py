"""The command line: ``fit``, ``validate``, ``test`` and ``predict`` by LightningCLI, and what stands beside them."""

import logging
import os
import re
import sys
import traceback
import warnings
from importlib import import_module

from hsakd_pl.cli.arguments import check_files
from hsakd_pl.cli.commands import COMMANDS, front_page, make_parser, parse
from hsakd_pl.errors import UsageError, did_you_mean
from hsakd_pl.runs.signals import Interrupted, stopped_by_signals

USER_MISTAKES = (UsageError,)  # shown in one line; everything else keeps its traceback
DEBUG = "--debug"  # shows the traceback of a user's mistake as well
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
    arguments = sys.argv[1:] if args is None else list(args)
    debug = DEBUG in arguments
    try:
        with stopped_by_signals():
            _run([argument for argument in arguments if argument != DEBUG], debug)
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Interrupted as signal:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            print(signal, file=sys.stderr)
        raise SystemExit(signal.status) from None
    except USER_MISTAKES as error:
        if debug:
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_no_advert(record: logging.LogRecord) -> bool:
    return not re.match(ADVERTS, record.getMessage())


def _run(args: list[str], debug: bool) -> None:
    """Run the command that ``args`` begin with."""
    if not args or args[0] in ("-h", "--help"):
        print(front_page())
        raise SystemExit(0 if args else 2)
    name = args[0]
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name}: {did_you_mean(name, COMMANDS)}'hsakd --help' lists them")
    if COMMANDS[name].module and not _is_lightnings(name, args[1:]):
        parser = make_parser(name)
        options = parse(parser, args[1:])
        options.debug = debug
        options.arguments = args
        import_module(COMMANDS[name].module).run(options)
        return
    check_files(args)
    import_module("hsakd_pl.cli.lightning_cli").HSAKDCLI(args=args)


def _is_lightnings(name: str, options: list[str]) -> bool:
    """Return whether ``predict`` has options alone, as ``fit`` has, instead of a source and images."""
    return name == "predict" and bool(options) and options[0].startswith("-") and options[0] not in ("-h", "--help")
