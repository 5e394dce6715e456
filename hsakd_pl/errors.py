"""The one error type for mistakes a user can correct."""


class UsageError(ValueError):
    """A wrong file, option or combination; the message names the culprit and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


def require(valid: bool, option: str, value: object, meaning: str) -> None:
    """Raise UsageError, that ``option`` must be ``meaning`` and is ``value``, unless ``valid``."""
    if not valid:
        raise UsageError(f"{option} is {value}: it must be {meaning}")
