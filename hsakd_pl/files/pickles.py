"""A reader of pickles that makes plain data and arrays by itself, and nothing that a file names."""

import math
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hsakd_pl.errors import UsageError

MOST_BYTES = 300_000_000  # CIFAR-100's 50,000 images take 155 MB, as text in protocol 2 about 225 MB
MOST_OPCODES = 1_000_000  # its labels and names take 0.3 million
MOST_SCALAR = 256  # bytes of one number or of 64 characters

LITERAL = "(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|((SHORT_)?BIN)?(STRING|UNICODE|BYTES)8?|BYTEARRAY8"
LITERALS = {opcode.name for opcode in pickletools.opcodes if re.fullmatch(LITERAL, opcode.name)}
TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "STACK_GLOBAL": 2, "REDUCE": 1, "BUILD": 1}
# What arrays, their numbers and bytes are written with: numpy 1 and 2, protocols 0 to 5
KNOWN = re.compile(
    r"numpy (ndarray|dtype)|numpy\._?core\.(multiarray (_reconstruct|scalar)|numeric _frombuffer)|"
    r"_codecs encode|(__builtin__|builtins) bytes"
)


def read_entries(path: Path, *keys: str) -> list[Any]:
    """Values under ``keys`` of a pickled dict, Python 2's included: arrays, text, numbers, lists, tuples and dicts.

    Bytes come as text, byte by byte. Time and memory are in proportion to the file.
    Raises UsageError naming the file if it is missing, too large, truncated or corrupt, lacks a key, asks for a global
    that is none of numpy's data, or holds under a key an array of anything but numbers or text.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing: was the archive extracted completely?")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UsageError(f"{path} has {size} bytes, and a file of CIFAR-100 at most {MOST_BYTES}: fetch it again")
    pickled = path.read_bytes()
    try:
        content = _interpret(pickled)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, no dict")
        if missing := [key for key in keys if key not in content]:
            raise UsageError(f"it has no {' and '.join(missing)}, so it is no file of CIFAR-100's python version")
        return [_made(content[key]) for key in keys]
    except UsageError as error:
        raise UsageError(f"{path} was refused: {error}") from None
    except Exception as error:  # a broken pickle can raise anything
        message = f"{path} is truncated or corrupt ({str(error)!a:.100}): delete it and fetch it again"
        raise UsageError(message) from error


@dataclass(eq=False)
class _Call:
    """A call that a pickle asks for, by the name of a global: kept, never made."""

    name: str
    arguments: Any = None
    state: Any = None


def _interpret(pickled: bytes) -> Any:
    """What a pickle holds, its calls as :class:`_Call`.

    Python's own unpickler calls what a pickle names, hashes tuples of any depth until the stack overflows, and makes
    tables as large as a pickle says.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stack under each mark
    memo: dict[int, Any] = {}
    value: Any  # behind an opcode
    for number, (opcode, value, _) in enumerate(pickletools.genops(pickled)):
        if number == MOST_OPCODES:
            raise UsageError(f"it has more than {MOST_OPCODES} opcodes, a file of CIFAR-100 about 300,000")
        items: list[Any] = []
        if opcode.name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS"):
            items, stack = stack, below.pop()
        elif taken := TAKEN.get(opcode.name):
            items = stack[-taken:]
            del stack[-taken:]
        match opcode.name:
            case name if name in LITERALS:
                stack.append(str(value, "latin1") if isinstance(value, bytes) else value)
            case "MEMOIZE" | "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[len(memo) if value is None else value] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "NONE" | "NEWTRUE" | "NEWFALSE" as name:
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "MARK":
                below.append(stack)
                stack = []
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(items))
            case "EMPTY_LIST" | "LIST":
                stack.append(items)
            case "EMPTY_DICT" | "DICT":
                stack.append(_fill({}, items))
            case "APPEND" | "APPENDS":
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                _fill(stack[-1], items)
            case "GLOBAL" | "INST":
                stack.append(_known(value))
            case "STACK_GLOBAL":
                stack.append(_known(" ".join(items)))
            case "REDUCE":
                stack[-1] = _reduced(stack[-1], *items)
            case "BUILD":
                [stack[-1].state] = items
            case name if name not in ("PROTO", "FRAME", "STOP"):
                raise UsageError(f"its opcode {name} makes something else than plain data")
    return stack[-1]


def _fill(target: Any, items: list[Any]) -> Any:
    if not all(isinstance(key, str) for key in items[::2]):  # others may take for ever to hash
        raise UsageError("it holds a dict whose keys are no text")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


def _known(name: str) -> _Call:
    if not KNOWN.fullmatch(name):
        raise UsageError(
            f"it asks for {ascii(name)[1:-1].replace(' ', '.', 1):.80}, and a data file has no business doing so: "
            f"nothing of it was run, do not use this file"
        )
    return _Call(name.split()[1])


def _reduced(function: _Call, arguments: Any) -> Any:
    match function.name, arguments:
        case "encode", (str(text), "latin1"):  # how protocol 2 writes bytes
            return text
        case "bytes", ():
            return ""
        case "scalar", (kind, str(raw)) if len(raw) <= MOST_SCALAR:
            return _array(kind, (1,), raw, "C").item()
    return _Call(function.name, arguments)


def _made(value: Any) -> Any:
    """The array that a call stands for, or the value itself."""
    match value:
        case _Call("_reconstruct", _, (_, shape, kind, fortran, raw)):
            return _array(kind, shape, raw, "F" if fortran else "C")
        case _Call("_frombuffer", (raw, kind, shape, "C" | "F" as order)):
            return _array(kind, shape, raw, order)
        case _Call(name):
            raise UsageError(f"it holds a {name} in place of an array or a list")
    return value


def _array(kind: Any, shape: Any, raw: Any, order: Literal["C", "F"]) -> np.ndarray:
    """A writable array over ``raw``, text of one byte a character or a bytearray, which it fills."""
    code = kind.state[1] + kind.arguments[0]  # byte order, then kind and size
    if not re.fullmatch("[<>=|][biufSU][1-9][0-9]{0,3}", code):
        raise UsageError(f"it holds an array of {code!a:.20}, and not of numbers or text")
    buffer = bytearray(raw, "latin1") if isinstance(raw, str) else raw
    fits = len(shape) in (1, 2) and all(0 <= side < 2**31 for side in shape)
    if not fits or math.prod(shape) * np.dtype(code).itemsize != len(buffer):
        raise ValueError("the shape of an array is not that of its bytes")
    return np.ndarray(shape, code, buffer, order=order)
