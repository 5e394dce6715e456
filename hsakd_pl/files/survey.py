"""Find out what a pickle of weights would do, without doing it."""

import pickletools
from collections.abc import Callable
from pickle import UnpicklingError
from typing import IO, Any, NamedTuple

from hsakd_pl.errors import UsageError

MOST_PARTS = 1_000_000  # of a tuple that holds tuples: to hash one takes as many steps
# Bytes per element of torch.DoubleStorage and so on; 1 for all others.
ITEMSIZES = {
    "ComplexDouble": 16,
    "Double": 8,
    "Long": 8,
    "ComplexFloat": 8,
    "Float": 4,
    "Int": 4,
    "QInt32": 4,
    "Half": 2,
    "Short": 2,
    "BFloat16": 2,
}
# Opcodes that fill what they are given
FILLING: dict[str, type[dict[Any, Any]] | type[list[Any]]] = {
    "SETITEM": dict,
    "SETITEMS": dict,
    "APPEND": list,
    "APPENDS": list,
}


class _Item(NamedTuple):
    """An object on the pickle's stack.

    Args:
        parts: number of its parts.
        value: its value, if it is plain data or a tuple of it.
        made_by: the global that it is, or that made it.
    """

    parts: int
    value: Any
    made_by: str | None = None


class Named(NamedTuple):
    """Hold the globals that a pickle names.

    Args:
        names: all globals.
        filled: globals that make mappings or lists, which are filled afterwards, by the type of these.
    """

    names: set[str]
    filled: dict[str, type[dict[Any, Any]] | type[list[Any]]]


def survey(pickle: IO[bytes], storage_bytes: Callable[[str], int]) -> Named:
    """Read a pickle to its end without making objects, and return the globals that it names.

    Raises UnpicklingError for what PyTorch's reader lets a forged file do: read past the end of a storage, hash nested
    tuples forever, fill the memory by codecs.

    Args:
        pickle: file, at the beginning of the pickle.
        storage_bytes: returns the number of bytes of a storage.
    """
    named = Named(set(), {})
    stack: list[_Item] = []
    marks: list[int] = []
    memo: dict[int, _Item] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name.endswith("GET"):
            stack.append(memo[argument])
        elif opcode.name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif opcode.name == "MARK":
            marks.append(len(stack))
        else:
            operands = _take_operands(opcode, stack, marks)
            if opcode.name == "GLOBAL":
                argument = argument.replace(" ", ".")
                named.names.add(argument)
            elif opcode.name in FILLING and operands[0].made_by is not None:
                named.filled[operands[0].made_by] = FILLING[opcode.name]
            item = _make_item(opcode.name, argument, operands)
            _check(opcode.name, argument, operands, item, storage_bytes)
            if opcode.stack_after:
                stack.append(item)
    return named


def _take_operands(opcode: pickletools.OpcodeInfo, stack: list[_Item], marks: list[int]) -> list[_Item]:
    """Take the operands of an opcode from the stack: all above the last mark, if it needs one, or a fixed number."""
    operand_count = len(opcode.stack_before)
    start = len(stack) - operand_count
    if pickletools.markobject in opcode.stack_before:
        start = marks.pop() - (operand_count - 2)  # the mark and all above it count as two operands
    operands = stack[start:]
    stack[start:] = []
    return operands


def _make_item(name: str, argument: Any, operands: list[_Item]) -> _Item:
    """Return the item that an opcode pushes onto the stack."""
    parts = 1
    if "TUPLE" in name or name in ("REDUCE", "NEWOBJ"):
        parts += sum(operand.parts for operand in operands)
    value = [operand.value for operand in operands] if "TUPLE" in name else argument
    made_by = argument if name == "GLOBAL" else None
    if name in ("REDUCE", "NEWOBJ", *FILLING):
        made_by = operands[0].made_by
    return _Item(parts, value, made_by)


def _check(name: str, argument: Any, operands: list[_Item], item: _Item, storage_bytes: Callable[[str], int]) -> None:
    """Raise UsageError or UnpicklingError for an opcode that must not be executed."""
    if name == "PROTO" and argument > 3:
        raise UsageError(f"written with pickle_protocol {argument}: leave that out of torch.save")
    if name == "BINPERSID":
        if operands[0].value[0] == "module":  # with its source code
            raise UsageError("in the format of before PyTorch 1.6, with classes of layers: save the state dict alone")
        _, storage_class, key, _, element_count = operands[0].value[:5]
        itemsize = ITEMSIZES.get(storage_class.removeprefix("torch.").removesuffix("Storage"), 1)
        if element_count * itemsize > storage_bytes(key):
            raise UnpicklingError("a storage larger than its bytes")
    if item.parts > MOST_PARTS:
        raise UnpicklingError("tuples of tuples without end")
    if name == "REDUCE" and operands[0].value == "_codecs.encode" and operands[1].value[1:] != ["latin1"]:
        raise UnpicklingError("a codec that fills the memory")
