"""The one error type for mistakes a user can correct."""


class UsageError(ValueError):
    """A wrong file, option or combination; the message names the culprit and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """
