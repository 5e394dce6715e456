"""The exception for mistakes that a user can correct, and helpers for messages."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """Raised for a wrong file, option or combination of options; the message names the culprit and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


def require(valid: bool, option: str, value: object, meaning: str) -> None:
    """Raise UsageError unless ``valid``.

    Args:
        valid: result of the check.
        option: name of the option that was checked.
        value: its value.
        meaning: phrase that completes "must be ...".

    Examples:
        >>> require(batch_size >= 1, "batch_size", batch_size, "at least 1")  # doctest: +SKIP
        UsageError: batch_size must be at least 1, got 0.
    """
    if not valid:
        raise UsageError(f"{option} must be {meaning}, got {value}.")


def did_you_mean(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the candidates that resemble a misspelt name, or an empty string if none does.

    Args:
        name: the misspelt name.
        candidates: all valid names.
        prefix: text to put before each suggested name.

    Examples:
        >>> did_you_mean("resnet9", ["resnet8", "vgg8"])
        'did you mean resnet8? '
    """
    names = list(candidates)
    similar = get_close_matches(name, names, n=3, cutoff=0.8) or get_close_matches(name, names, n=3, cutoff=0.5)
    if not similar:
        return ""
    suggestions = " or ".join(prefix + candidate for candidate in similar)
    return f"did you mean {suggestions}? "


def counted(number: int, noun: str) -> str:
    """Return a number of things in words, such as ``1 epoch`` or ``2,000 images``.

    Args:
        number: how many there are.
        noun: what they are called, in the singular.

    Examples:
        >>> counted(1, "image"), counted(2000, "class"), counted(2, "batch"), counted(2, "epoch")
        ('1 image', '2,000 classes', '2 batches', '2 epochs')
    """
    plural = f"{noun}es" if noun.endswith(("s", "x", "nch", "tch")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def inform(message: str) -> None:
    """Log a message in one of several processes, where Lightning logs: networks and files do not import Lightning.

    Args:
        message: one sentence.
    """
    from pytorch_lightning.utilities import rank_zero_info  # takes a second, and most uses of networks log nothing

    rank_zero_info(message)
