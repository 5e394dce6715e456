"""A reader of pickles that can build plain data and nothing else."""

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from hsakd_pl.errors import UsageError


class _Plain:
    """What a pickle makes in place of NumPy's objects: it keeps what it is given, and never calls their constructors.

    A forged state of a real ``numpy.dtype`` would turn bytes of the file into a pointer.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def built(self) -> Any:
        """Make what the file describes of its plain parts; ValueError where they do not fit together."""
        raise ValueError(f"{type(self).__name__.strip('_').lower()} is no value")


class _Dtype(_Plain):
    """``numpy.dtype(kind, align, copy)`` with a state that tells the order of bytes."""

    def built(self) -> np.dtype[Any]:
        kind, order = self.arguments[0], self.state[1] if self.state else "|"
        if not re.fullmatch(r"[uifbSU]\d{1,6}", kind) or order not in tuple("<>|="):
            raise ValueError(f"an array of {kind!r:.20} is no plain data")
        return np.dtype(order + kind)


class _Array(_Plain):
    """``_reconstruct(ndarray, shape, kind)`` with all of an array as its state."""

    def built(self) -> np.ndarray:
        _, shape, dtype, fortran, content = self.state
        return _array(content, dtype, shape, "F" if fortran else "C")


class _Scalar(_Plain):
    """``scalar(dtype, content)``."""

    def built(self) -> Any:
        return _array(self.arguments[1], self.arguments[0], (), "C")[()]


class _Buffer(_Plain):
    """``_frombuffer(content, dtype, shape, order)``, of protocol 5."""

    def built(self) -> np.ndarray:
        content, dtype, shape, order = self.arguments
        return _array(content, dtype, shape, order)


class _Bytes(_Plain):
    """``_codecs.encode(text, "latin1")``, by which protocol 2 writes bytes, and nothing else that it could do."""

    def __new__(cls, text: str, encoding: str = "latin1") -> Any:
        return text.encode("latin1")


_STAND_INS = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "_codecs.encode": _Bytes,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},  # numpy 1 and 2
    **{f"numpy.{core}.multiarray.scalar": _Scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _Buffer for core in ("core", "_core")},
}


def _array(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    raw = content.encode("latin1") if isinstance(content, str) else content
    kind = dtype.built()
    size = math.prod(shape) * kind.itemsize
    if not isinstance(raw, bytes | bytearray) or size != len(raw) or min(shape, default=0) < 0:
        raise ValueError(f"an array {shape!r:.50} of {kind} does not have the bytes that it needs")
    return np.frombuffer(bytearray(raw), kind).reshape(shape, order="F" if order == "F" else "C")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (found := _STAND_INS.get(f"{module}.{name}")) is None:
            raise UsageError(
                f"it asks for {module}.{name}, and a data file has no business doing so: "
                f"nothing of it was run, do not use this file"
            )
        return found


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return [each.built() if isinstance(each, _Scalar) else each for each in value]
    return value.built() if isinstance(value, _Plain) else value


def read_entries(path: Path, *keys: str) -> list[Any]:
    """Read the values at ``keys`` of a pickled dict: arrays, strings, bytes, numbers, lists of these, Python 2's too.

    Raises UsageError naming the file if it is missing, truncated or corrupt, lacks a key, or asks for any other global.
    """
    try:
        with path.open("rb") as file:
            content = dict(_PlainUnpickler(file, encoding="latin1").load())
        found = {str(key, "latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}
        values = [_built(found[key]) for key in keys if key in found]
    except UsageError as error:
        raise UsageError(f"{path} was refused: {error}") from None
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: was the archive extracted completely?") from error
    except Exception as error:  # a broken pickle can raise anything
        raise UsageError(f"{path} is truncated or corrupt ({error!s:.200}): delete it and fetch it again") from error
    if missing := [key for key in keys if key not in found]:
        raise UsageError(f"{path} has no {' and '.join(missing)}: it is no file of CIFAR-100's python version")
    return values
