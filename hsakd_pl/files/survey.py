"""What a pickle of weights would do, found out without doing it."""

import pickletools
from collections.abc import Callable
from pickle import UnpicklingError
from typing import IO, Any

from hsakd_pl.errors import UsageError

MOST_PARTS = 1_000_000  # of a tuple that holds tuples: to hash one takes as many steps
# Bytes of an element of torch.DoubleStorage and so on; 1 for all others.
ITEMSIZES = {"ComplexDouble": 16, "Double": 8, "Long": 8, "ComplexFloat": 8, "Float": 4, "Int": 4, "QInt32": 4}
ITEMSIZES |= {"Half": 2, "Short": 2, "BFloat16": 2}


def survey(pickle: IO[bytes], room: Callable[[str], int]) -> set[str]:
    """Follow a pickle to its end, making nothing, and return the names that it takes from modules.

    ``room`` tells the bytes of a storage. Raises UnpicklingError for what PyTorch's reader lets a forged file do: read
    past a storage, hash tuples of tuples for ever, fill the memory by codecs.
    """
    names: set[str] = set()
    stack: list[tuple[int, Any]] = []  # of each object the number of its parts, and its value if it is plain
    memo: dict[int, tuple[int, Any]] = {}
    marks: list[int] = []
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name.endswith("GET"):
            stack.append(memo[argument])
        elif name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        else:
            marked = pickletools.markobject in opcode.stack_before
            start = (marks.pop() if marked else len(stack)) - len(opcode.stack_before) + 2 * marked
            parts, stack[start:] = stack[start:], []
            values = [value for _, value in parts]
            made = "TUPLE" in name or name in ("REDUCE", "NEWOBJ")
            count = 1 + sum(count for count, _ in parts) if made else 1
            if name == "PROTO" and argument > 3:
                raise UsageError(f"written with pickle_protocol {argument}: leave that out of torch.save")
            if name == "GLOBAL":
                argument = argument.replace(" ", ".")
                names.add(argument)
            if name == "BINPERSID":
                _, kind, key, _, elements = values[0][:5]
                if elements * ITEMSIZES.get(kind.removeprefix("torch.").removesuffix("Storage"), 1) > room(key):
                    raise UnpicklingError("a storage larger than its bytes")
            if count > MOST_PARTS or (
                name == "REDUCE" and values[0] == "_codecs.encode" and values[1][1:] != ["latin1"]
            ):
                raise UnpicklingError("tuples of tuples without end, or a codec that fills the memory")
            if opcode.stack_after:
                stack.append((count, values if "TUPLE" in name else argument))
    return names
