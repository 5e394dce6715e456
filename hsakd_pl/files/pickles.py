"""Read pickles of plain data and arrays without running code that they name."""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hsakd_pl.errors import UsageError
from hsakd_pl.files.text import naming

MOST_BYTES = 300_000_000  # CIFAR-100's 50,000 images take 155 MB, as text in protocol 2 about 225 MB
MOST_OPCODES = 1_000_000  # its labels and names take 0.3 million
MOST_SCALAR = 256  # bytes of one number or of 64 characters

LITERAL = "(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|((SHORT_)?BIN)?(STRING|UNICODE|BYTES)8?|BYTEARRAY8"
LITERALS = {opcode.name for opcode in pickletools.opcodes if re.fullmatch(LITERAL, opcode.name)}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes that take all items above the last mark from the stack, and opcodes that take a fixed number of items
MARKED = ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS")
OPERANDS = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "STACK_GLOBAL": 2,
    "REDUCE": 2,
    "APPEND": 1,
    "SETITEM": 2,
    "BUILD": 1,
}
# Globals that arrays, their numbers and bytes are written with: numpy 1 and 2, protocols 0 to 5
DATA_GLOBALS = re.compile(
    r"numpy (ndarray|dtype)|numpy\._?core\.(multiarray (_reconstruct|scalar)|numeric _frombuffer)|"
    r"_codecs encode|(__builtin__|builtins) bytes"
)


def read_entries(path: Path, *keys: str) -> list[Any]:
    """Return the values under ``keys`` of a pickled dict, of Python 2 or 3, without running code from the file.

    The values are arrays, text, numbers, lists, tuples and dicts; bytes are returned as text, one character per byte.
    Time and memory are proportional to the size of the file.

    Raises UsageError naming the file if it is missing, too large, truncated or corrupt, lacks a key, asks for a global
    other than numpy's for arrays, or contains an array of other elements than numbers or text.
    """
    with naming(path):
        if not path.is_file():
            raise UsageError(f"{path} is missing: was the archive extracted completely?")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UsageError(f"{path} has {size} bytes, and a file of CIFAR-100 at most {MOST_BYTES}: fetch it again")
        pickled = path.read_bytes()
    try:
        content = _Machine().run(pickled)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, no dict")
        missing = [key for key in keys if key not in content]
        if missing:
            raise UsageError(f"it has no {' and '.join(missing)}, so it is not a file of CIFAR-100's python version")
        return [_resolve(content[key]) for key in keys]
    except UsageError as error:
        raise UsageError(f"{path} was refused: {error}") from None
    except Exception as error:  # a broken pickle can raise anything
        message = f"{path} is truncated or corrupt ({str(error)!a:.100}): delete it and fetch it again"
        raise UsageError(message) from error


@dataclass(eq=False)
class _Call:
    """A call of a global that a pickle asks for; it is stored, never made."""

    name: str
    arguments: Any = None
    state: Any = None


class _Machine:
    """Execute the opcodes of a pickle; a call that it asks for becomes a :class:`_Call`.

    Python's own unpickler calls what a pickle names, hashes nested tuples until the stack overflows, and allocates
    tables of any size that a pickle states.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.stacks_below: list[list[Any]] = []  # the stack under each mark
        self.memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """Return the content of a pickle; raises UsageError for too many opcodes or an opcode that is not for data."""
        argument: Any
        for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if number == MOST_OPCODES:
                raise UsageError(f"it has more than {MOST_OPCODES} opcodes, a file of CIFAR-100 about 300,000")
            self.execute(opcode.name, argument)
        return self.stack[-1]

    def execute(self, name: str, argument: Any) -> None:
        """Execute one opcode with the argument behind it."""
        if name in LITERALS:
            self.stack.append(str(argument, "latin1") if isinstance(argument, bytes) else argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in ("GLOBAL", "INST"):
            self.stack.append(_data_global(argument))
        elif name == "MARK":
            self.stacks_below.append(self.stack)
            self.stack = []
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            key = len(self.memo) if argument is None else argument
            self.memo[key] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in MAKERS:
            operands = self.operands(name)
            self.stack.append(MAKERS[name](operands))
        elif name in CHANGES:
            operands = self.operands(name)
            CHANGES[name](self.stack[-1], operands)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UsageError(f"its opcode {name} makes something else than plain data")

    def operands(self, name: str) -> list[Any]:
        """Take the operands of an opcode from the stack."""
        if name in MARKED:
            operands = self.stack
            self.stack = self.stacks_below.pop()
            return operands
        first = len(self.stack) - OPERANDS.get(name, 0)
        if first < 0:
            raise ValueError(f"{name} lacks operands")
        operands = self.stack[first:]
        del self.stack[first:]
        return operands


def _data_global(name: str) -> _Call:
    if not DATA_GLOBALS.fullmatch(name):
        raise UsageError(
            f"it asks for {ascii(name)[1:-1].replace(' ', '.', 1):.80}, which a data file must not: "
            f"nothing of it was run, do not use this file"
        )
    return _Call(name.split()[1])


def _make_dict(items: list[Any]) -> dict[str, Any]:
    target: dict[str, Any] = {}
    _set_items(target, items)
    return target


def _make_call(operands: list[Any]) -> Any:
    function, arguments = operands
    match function.name, arguments:
        case "encode", (str(text), "latin1"):  # how protocol 2 writes bytes
            return text
        case "bytes", ():
            return ""
        case "scalar", (dtype, str(raw)) if len(raw) <= MOST_SCALAR:
            return _array(dtype, (1,), raw, "C").item()
    return _Call(function.name, arguments)


def _extend(target: list[Any], items: list[Any]) -> None:
    target.extend(items)


def _set_items(target: dict[str, Any], items: list[Any]) -> None:
    keys = items[::2]
    if not all(isinstance(key, str) for key in keys):  # others may take forever to hash
        raise UsageError("it holds a dict with keys other than text")
    target.update(zip(keys, items[1::2], strict=True))


def _set_state(call: _Call, operands: list[Any]) -> None:
    (call.state,) = operands


# The item that an opcode pushes, computed from its operands
MAKERS: dict[str, Callable[[list[Any]], Any]] = {
    "EMPTY_TUPLE": tuple,
    "TUPLE": tuple,
    "TUPLE1": tuple,
    "TUPLE2": tuple,
    "TUPLE3": tuple,
    "EMPTY_LIST": list,
    "LIST": list,
    "EMPTY_DICT": _make_dict,
    "DICT": _make_dict,
    "STACK_GLOBAL": lambda names: _data_global(" ".join(names)),
    "REDUCE": _make_call,
}
# How opcodes change the item on top of the stack, given their operands
CHANGES: dict[str, Callable[[Any, list[Any]], None]] = {
    "APPEND": _extend,
    "APPENDS": _extend,
    "SETITEM": _set_items,
    "SETITEMS": _set_items,
    "BUILD": _set_state,
}


def _resolve(value: Any) -> Any:
    """Return the array that a call makes, or any other value unchanged."""
    match value:
        case _Call("_reconstruct", _, (_, shape, dtype, fortran, raw)):
            return _array(dtype, shape, raw, "F" if fortran else "C")
        case _Call("_frombuffer", (raw, dtype, shape, "C" | "F" as order)):
            return _array(dtype, shape, raw, order)
        case _Call(name):
            raise UsageError(f"it holds a {name} in place of an array or a list")
    return value


def _array(dtype: Any, shape: Any, raw: Any, order: Literal["C", "F"]) -> np.ndarray:
    """Return a writable array over ``raw``, either text of one character per byte or a bytearray."""
    code = dtype.state[1] + dtype.arguments[0]  # byte order, then kind and size
    if not re.fullmatch("[<>=|][biufSU][1-9][0-9]{0,3}", code):
        raise UsageError(f"it holds an array of {code!a:.20}, and not of numbers or text")
    buffer = bytearray(raw, "latin1") if isinstance(raw, str) else raw
    valid_shape = len(shape) in (1, 2) and all(0 <= side < 2**31 for side in shape)
    if not valid_shape or math.prod(shape) * np.dtype(code).itemsize != len(buffer):
        raise ValueError("the shape of an array is not that of its bytes")
    return np.ndarray(shape, code, buffer, order=order)
