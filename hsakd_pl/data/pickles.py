"""A reader of pickles that can build plain data and nothing else."""

import pickle
from pathlib import Path
from typing import Any

from hsakd_pl.errors import UsageError

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocol 2 writes bytes
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),  # numpy 1 and 2
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),  # protocol 5
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UsageError(
                f"it asks for {module}.{name}, and a data file has no business doing so: "
                f"nothing of it was run, do not use this file"
            )
        return super().find_class(module, name)


def load_plain(path: Path) -> dict[Any, Any]:
    """Unpickle a dict of arrays, strings, bytes, numbers, lists, tuples and dicts, Python 2's included.

    Raises UsageError naming the file if it is missing, truncated or corrupt, or asks for any other global.
    """
    try:
        with path.open("rb") as file:
            return dict(_PlainUnpickler(file, encoding="latin1").load())
    except UsageError as error:
        raise UsageError(f"{path} was refused: {error}") from None
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: was the archive extracted completely?") from error
    except Exception as error:  # a broken pickle can raise anything
        raise UsageError(f"{path} is truncated or corrupt ({error}): delete it and fetch it again") from error
