"""Forge pickles: opcodes changed, counts made extreme, foreign globals, and whole pickles that try to run code."""

import pickle
import pickletools
import struct
from random import Random
from typing import Any

import numpy as np

from fuzz.mutations import EXTREMES, Change, replaced

OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]
COMMAND = "mkdir executed"
CODE = "import os; os.environ['FUZZ_EXECUTED'] = '1'; os.mkdir('executed')"
# What runs code, imports a module, or makes more than plain data, with the argument it would be called with
HOSTILE = (
    ("os", "system", COMMAND),
    ("posix", "system", COMMAND),
    ("subprocess", "getoutput", COMMAND),
    ("builtins", "exec", CODE),
    ("builtins", "eval", "__import__('os').mkdir('executed')"),
    ("__builtin__", "eval", "__import__('os').mkdir('executed')"),
    ("os", "mkdir", "executed"),
    ("fuzz_payload", "boom", "x"),
    ("builtins", "__import__", "fuzz_payload"),
    ("runpy", "run_module", "fuzz_payload"),
    ("importlib", "import_module", "fuzz_payload"),
    ("pathlib", "Path.mkdir", "executed"),
    ("os", "mkfifo", "executed"),
    ("numpy", "load", "executed"),
    ("numpy", "fromfile", "train"),
    ("torch", "load", "train"),
    ("torch.storage", "_load_from_bytes", "x"),
    ("_codecs", "decode", "x"),
    ("numpy", "dtype.__setstate__", "x"),
    ("builtins", "bytearray", "x"),
    ("builtins", "getattr", "x"),
    ("operator", "attrgetter", "system"),
    ("torch.hub", "load_state_dict_from_url", "http://127.0.0.1:9/x"),
    ("numpy.testing._private.utils", "runstring", CODE),
)
BASES = ("V8", "O", "O8", "u1", "S8", "M8", "U2", "i8", "V0", "S0", "f8", "V3072", "c16", "b1", "u1,O", "m8[3D]")


def text(value: str) -> bytes:
    """Return BINUNICODE of a text."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def called(module: str, name: str, argument: bytes) -> bytes:
    """Return a call of a global with one argument."""
    return f"c{module}\n{name}\n(".encode() + argument + b"tR"


def python2(value: Any) -> bytes:
    """Return opcodes of dicts, lists, strings, integers and uint8 arrays in the form of Python 2 and CIFAR's files."""
    if isinstance(value, dict):
        return b"(" + b"".join(python2(part) for item in value.items() for part in item) + b"d"
    if isinstance(value, list):
        return b"(" + b"".join(map(python2, value)) + b"l"
    if isinstance(value, np.ndarray):
        sides = b"".join(b"I%d\n" % side for side in value.shape)
        raw = value.tobytes()
        return array(b"(" + sides + b"t", "u1", b"|", (-1, -1, 0), b"T" + struct.pack("<I", len(raw)) + raw)
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    return b"T" + struct.pack("<I", len(value)) + value.encode("latin1")


def array(shape: bytes, base: str, order: bytes, sizes: tuple[int, int, int], data: bytes) -> bytes:
    """Return opcodes of an array with the dtype ``base``, given the state (order, item size, alignment, flags)."""
    state = b"(I3\nS'" + order + b"'\nNNN" + b"".join(b"I%d\n" % size for size in sizes) + b"tb"
    dtype = b"cnumpy\ndtype\n(S'" + base.encode() + b"'\nI0\nI1\ntR" + state
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return reconstruct + b"(I1\n" + shape + dtype + b"I00\n" + data + b"tb"


def whole(content: bytes) -> bytes:
    """Return a pickle of protocol 2 with these opcodes."""
    return b"\x80\x02" + content + b"."


def forged_dtype(rng: Random) -> bytes:
    """Return an array whose dtype's state lies about its items, so that bytes of the file may be taken for pointers."""
    count = rng.choice((1, 3, 8))
    sizes = (
        rng.choice((-1, 0, 1, 8, 3072, 2**31 - 1)),
        rng.choice((-1, 0, 1, 8, 64)),
        rng.choice((0, 1, 8, 16, 63, 255)),
    )
    raw = rng.choice((b"A" * 8 * count, bytes(8 * count), rng.randbytes(3072 * count)))
    data = rng.choice((b"T" + struct.pack("<I", len(raw)) + raw, b"N", b"(I1\nI2\nl", b"I7\n", text("x")))
    shape = rng.choice((b"(I%d\nt" % count, b"(I%d\nI3072\nt" % count, b"(I-1\nt", b"(I1000000000000\nt", b"(t", b"N"))
    forged = array(shape, rng.choice(BASES), rng.choice((b"|", b"<", b">", b"=", b"!")), sizes, data)
    labels = b"(" + b"I0\n" * count + b"l"
    return whole(b"(" + text("data") + forged + text("fine_labels") + rng.choice((labels, forged)) + b"d")


def hostile(rng: Random) -> bytes:
    """Return a pickle that tries to run something by one of the calling opcodes, alone or inside a dict."""
    module, name, argument = rng.choice(HOSTILE)
    value = text(argument)
    calls = (
        called(module, name, value),
        b"(" + value + f"i{module}\n{name}\n".encode(),
        b"(" + f"c{module}\n{name}\n".encode() + value + b"o",
        f"c{module}\n{name}\n(".encode() + value + b"t\x81",
        f"c{module}\n{name}\n(".encode() + value + b"t}\x92",
        b"\x80\x04" + text(module) + text(name) + b"\x93(" + value + b"tR",
        b"ccollections\nOrderedDict\n)R}" + text("__setstate__") + f"c{module}\n{name}\nsb".encode() + value + b"b",
        b"cnumpy\nndarray\n(" + value + b"tR" + called(module, name, value) + b"b",
        b"(" + called(module, name, value) + b"I1\nd",
        b"(I1\nQ" + called(module, name, value) + b"Qd",
    )
    call = rng.choice(calls)
    inside = b"(" + text(rng.choice(("data", "net", "state_dict", "fine_labels"))) + call + b"d"
    return whole(rng.choice((call, inside, b"}" + text("x") + call + b"s")))


def exhausting(rng: Random) -> bytes:
    """Return a short pickle that asks for much memory, time or stack."""
    depth = rng.choice((200, 5000, 200_000))
    tuples = b"I1\n" + b"".join(b"2\x86" for _ in range(60))  # each is a pair of the previous one: 2**60 leaves
    return whole(
        rng.choice(
            (
                b"]" * depth + b"a" * (depth - 1),
                b"(" * depth + b"t" * depth,
                b"I1\n" + b"\x85" * depth,
                b"}" + tuples + b"I1\ns",
                b"(" + text("data") + tuples + text("fine_labels") + tuples + b"d",
                b"}r" + struct.pack("<I", rng.choice((2**31 - 1, 2**32 - 1, 2**28))),
                b"}p%d\n" % rng.choice((2**31, 2**40, 2**28)),
                b"B" + struct.pack("<I", 2**32 - 1) + b"x",
                b"\x8e" + struct.pack("<Q", rng.choice((2**33, 2**62, 2**64 - 1))),
                b"\x96" + struct.pack("<Q", 2**33),
                b"\x8b" + struct.pack("<i", rng.choice((-1, 2**31 - 1))),
                b"I" + b"9" * 20000 + b"\n",
                b"\x95" + struct.pack("<Q", 2**63) + b"}",
                called("numpy", "ndarray", b"I%d\n" % 2**35),
                called("numpy", "dtype", text("(1000000,1000000)u1")),
                called("numpy", "dtype", text("u1," * 100_000 + "u1")),
                called("_codecs", "encode", text("x" * 100)),
            )
        )
    )


def opcodes(data: bytes) -> list[tuple[Any, Any, slice]]:
    """Return opcode, argument and position of each instruction of the first pickle in ``data``."""
    instructions = list(pickletools.genops(data))
    ends = [at for _, _, at in instructions[1:]] + [instructions[-1][2] + 1]
    return [(opcode, argument, slice(at, end)) for (opcode, argument, at), end in zip(instructions, ends, strict=True)]


def reassembled(rng: Random, data: bytes, start: int = 0) -> tuple[str, bytes]:
    """Change, remove, repeat, swap or insert one instruction of the pickle that begins at ``start``."""
    pickled = data[start:]
    instructions = opcodes(pickled)
    _, _, where = rng.choice(instructions)
    raw, other = pickled[where], pickled[rng.choice(instructions)[2]]
    module, name, value = rng.choice(HOSTILE)
    ints = [
        op for op in instructions if op[0].name.startswith(("BININT", "INT", "LONG", "BINPUT", "BINGET", "LONG_BIN"))
    ]
    names = [op for op in instructions if op[0].name in ("GLOBAL", "STACK_GLOBAL", "INST")]
    way = rng.randrange(8)
    if way == 0:
        name_of, by = "opcode changed", bytes([rng.choice(OPCODES)]) + raw[1:]
    elif way == 1:
        name_of, by = "instruction removed", b""
    elif way == 2:
        name_of, by = "instruction repeated", raw * rng.choice((2, 3, 100))
    elif way == 3:
        name_of, by = "instruction of elsewhere", other
    elif way == 4 and ints:
        _, argument, where = rng.choice(ints)
        number = rng.choice((*EXTREMES, -1, -(2**63), 1000, int(argument or 0) + 1))
        name_of, by = f"{argument} becomes {number}", b"I%d\n" % number
    elif way == 5 and names:
        _, _, where = rng.choice(names)
        name_of, by = f"calls {module}.{name}", f"c{module}\n{name}\n".encode()
    elif way == 6:
        name_of, by = f"{module}.{name} put in", raw + called(module, name, text(value))
    else:
        odd = rng.choice((b"N", b"\x88", b"]", b"}", b")", text("x"), b"I7\n", b"G" + struct.pack(">d", float("nan"))))
        name_of, by = "a value of another type", odd
    return name_of, data[:start] + replaced(pickled, where, by)


def mutate_opcodes(rng: Random, data: bytes) -> Change:
    """Change one to three instructions, as long as the result can still be parsed."""
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            name, data = reassembled(rng, data)
        except Exception:  # the previous change left no valid pickle, which suffices
            break
        names.append(name)
    return Change(", ".join(names), data, forged=True)


def mutate_whole(rng: Random, data: bytes) -> Change:
    """Replace the file by a hostile or exhausting pickle, or one with a forged dtype."""
    make_pickle = rng.choice((hostile, hostile, exhausting, forged_dtype))
    return Change(make_pickle.__name__, make_pickle(rng), forged=True, refuse=make_pickle is not forged_dtype)


def odd_value(rng: Random) -> Any:
    """Return a value that a field does not expect."""
    return rng.choice(
        (
            None,
            True,
            -1,
            10**30,
            1e308,
            float("nan"),
            "",
            "x",
            b"\xff",
            [],
            {},
            (),
            [[]],
            [None],
            {"a": 1},
            ["a", 1],
            [0, [1]],
            [1.5, 2],
            [True, False, True],
            ["\ud800"],
            np.zeros(3, np.float32),
            np.zeros((3, 3072), np.int64),
            np.array("x"),
            np.zeros((0, 3072), np.uint8),
            np.zeros((3, 0), np.uint8),
            np.zeros((3, 3072), ">u2"),
            np.array(3, np.uint8),
            np.zeros(3, bool),
            np.array([0, 1, 2], ">i8"),
            np.array([2**63, 0, 0], np.uint64),
            np.array(["0", "1", "2"]),
            np.zeros((2, 3072), np.uint8),
            np.asfortranarray(np.arange(9216, dtype=np.uint8).reshape(3, 3072)),
            np.zeros((3, 1), np.int64),
            np.array([0, 1], "M8[s]"),
            np.ones(3, complex),
        )
    )


def pickled(rng: Random, content: Any) -> bytes:
    """Return ``content`` pickled with any protocol."""
    return pickle.dumps(content, rng.choice((0, 1, 2, 3, 4, 5)))
