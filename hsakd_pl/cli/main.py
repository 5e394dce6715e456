"""The entry point of the command line: finds the command, runs it, and reports errors."""

import logging
import os
import sys
import traceback
from importlib import import_module

from hsakd_pl.cli.arguments import check_files
from hsakd_pl.cli.commands import COMMANDS, front_page, make_parser, parse
from hsakd_pl.cpu.delayed import delay_scipy_signal
from hsakd_pl.cpu.start import map_tensors, prepare_process
from hsakd_pl.errors import UsageError, did_you_mean
from hsakd_pl.files.escaping import for_terminal, show
from hsakd_pl.records.quiet import LOGGERS, quieten_lightning
from hsakd_pl.runs.signals import Interrupted, stopped_by_signals
from hsakd_pl.version import __version__

USER_MISTAKES = (UsageError,)  # shown in one line; everything else keeps its traceback
DEBUG = "--debug"  # shows the traceback of a user's mistake as well


def main(args: list[str] | None = None) -> None:
    """Run the command line ``args``, by default the process's; a UsageError ends it with one line and status 2."""
    quieten_lightning()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_escape)
    if "torch" not in sys.modules:  # otherwise this is not the program but a call within a process of the user
        prepare_process()
        map_tensors()  # until a run reuses memory
        delay_scipy_signal()
    arguments = sys.argv[1:] if args is None else list(args)
    if args is None:
        _find_classes_in_working_folder(arguments)
    debug = DEBUG in arguments
    try:
        with stopped_by_signals():
            _run([argument for argument in arguments if argument != DEBUG], debug)
    except BrokenPipeError:  # the reader of a pipe has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Interrupted as interruption:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            show(str(interruption), sys.stderr)
        raise SystemExit(interruption.status) from None
    except USER_MISTAKES as error:
        if debug:
            traceback.print_exception(error)
        show(f"error: {error}", sys.stderr)
        raise SystemExit(2) from None


def _find_classes_in_working_folder(arguments: list[str]) -> None:
    """Let Python look for modules in the working folder too, after all others, if the command imports users' classes.

    A file there that is named like a module of Python or of a library is thus never imported in its place.
    """
    is_safe_path = getattr(sys.flags, "safe_path", False)
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is not None and command.imports_classes and not is_safe_path:
        sys.path.append(os.path.abspath(""))


def _escape(record: logging.LogRecord) -> bool:
    """Write characters that control a terminal, as in the name of a class, as escapes."""
    record.msg = for_terminal(record.getMessage(), kept="\n\t")
    record.args = ()
    return True


def _run(args: list[str], debug: bool) -> None:
    """Run the command that ``args`` begin with."""
    if not args or args[0] in ("-h", "--help"):
        print(front_page())
        raise SystemExit(0 if args else 2)
    name = args[0]
    if name == "--version":
        print(f"hsakd_pl {__version__}")
        return
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name}: {did_you_mean(name, COMMANDS)}'hsakd --help' lists them")
    if COMMANDS[name].module and not _has_only_options(name, args[1:]):
        parser = make_parser(name)
        options = parse(parser, args[1:])
        options.debug = debug
        options.arguments = args
        import_module(COMMANDS[name].module).run(options)
        return
    check_files(args)
    import_module("hsakd_pl.cli.lightning_cli").HSAKDCLI(args=args)


def _has_only_options(name: str, options: list[str]) -> bool:
    """Return whether ``predict`` has only options, like ``fit``, instead of a source and images."""
    return name == "predict" and bool(options) and options[0].startswith("-") and options[0] not in ("-h", "--help")
