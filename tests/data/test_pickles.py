"""Test the reader of pickles with valid files of every writer, and with malicious ones."""

import contextlib
import pickle
import pickletools
import resource
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsakd_pl.data import CIFAR100DataModule
from hsakd_pl.errors import UsageError
from hsakd_pl.files.pickles import read_entries

IMAGES = np.random.default_rng(0).integers(256, size=(100, 3072), dtype=np.uint8)
LABELS = np.arange(100)


def read(tmp_path: Path, content: bytes, *keys: str) -> list[Any]:
    """Return the entries ``keys`` of a file that holds the pickle ``content``."""
    (tmp_path / "file").write_bytes(content)
    return read_entries(tmp_path / "file", *keys)


def of_numpy_1(content: bytes) -> bytes:
    """Return the same pickle as numpy 1 writes it."""
    for part in (b"multiarray", b"numeric"):
        short = b"\x8c%c" % (len(part) + 11) + b"numpy.core." + part
        content = content.replace(b"\x8c%c" % (len(part) + 12) + b"numpy._core." + part, short)
    return content.replace(b"cnumpy._core.", b"cnumpy.core.")


def of_python_2(content: bytes) -> bytes:
    """Return a pickle of protocol 2 with its short texts as Python 2's strings."""
    for opcode, value, position in reversed([*pickletools.genops(content)]):
        if opcode.name == "BINUNICODE":
            encoded = value.encode("latin1")  # Python 2's strings are bytes
            end = position + 5 + len(value.encode())
            content = content[:position] + b"U%c" % len(encoded) + encoded + content[end:]
    return content


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("numpy", [1, 2])
@pytest.mark.parametrize(
    "array",
    [
        IMAGES,
        np.asfortranarray(IMAGES),
        IMAGES[::2, ::-1],
        LABELS,
        LABELS.astype(">i4"),
        LABELS > 50,
        LABELS.astype("f4"),
        LABELS.astype("S"),
        np.array(["apple", "Äpfel", "りんご"]),
        np.zeros((0, 3072), np.uint8),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_pickled_arrays_of_all_protocols_and_numpy_versions_load_equal(
    tmp_path: Path, protocol: int, numpy: int, array: np.ndarray
) -> None:
    content = pickle.dumps({b"data": array, "beside": [1.5, None, True, (1, 2, 3, 4), b"\xff", {}]}, protocol)
    found, beside = read(tmp_path, of_numpy_1(content) if numpy == 1 else content, "data", "beside")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and found.flags.writeable
    assert beside == [1.5, None, True, (1, 2, 3, 4), "\xff", {}]


def test_published_cifar100_files_load_like_pickle(cifar_mini: Path) -> None:
    for name, keys in (("train", ("data", "fine_labels", "filenames")), ("meta", ("fine_label_names",))):
        path = cifar_mini / "cifar-100-python" / name
        with path.open("rb") as file:
            expected = pickle.load(file, encoding="latin1")
        for key, found in zip(keys, read_entries(path, *keys), strict=True):
            np.testing.assert_array_equal(found, expected[key])


@pytest.mark.parametrize("protocol", [0, 1, 2, 5])
def test_python_2_text_and_numpy_scalars_are_read(tmp_path: Path, protocol: int) -> None:
    entries = {"labels": [*LABELS], "names": [np.str_("cat"), np.str_("dog")], "shares": [np.float32(0.5)]}
    content = pickle.dumps(entries, protocol)
    content = of_python_2(content) if protocol == 2 else content
    labels, names, shares = read(tmp_path, content, "labels", "names", "shares")
    assert labels == list(range(100)) and all(type(label) is int for label in labels)
    assert names == ["cat", "dog"] and shares == [0.5]


@pytest.mark.parametrize("beside", [np.array([{}, None]), b"", np.zeros((2, 3, 4)).transpose(1, 0, 2)])
@pytest.mark.parametrize("protocol", [2, 5])
def test_unrequested_harmless_entries_are_ignored(tmp_path: Path, beside: Any, protocol: int) -> None:
    [labels] = read(tmp_path, pickle.dumps({"beside": beside, "fine_labels": [1]}, protocol), "fine_labels")
    assert labels == [1]


# Hostile files. Texts of protocol 2, globals, and arrays with what is to be forged in them


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def dtype(kind: str, state: bytes) -> bytes:
    return b"cnumpy\ndtype\n" + text(kind) + b"K\x00K\x01\x87R(" + state + b"tb"


def plain_state(order: str = "|") -> bytes:
    return b"K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"


def array(shape: bytes, kind: bytes, raw: bytes, order: bytes = b"\x89") -> bytes:
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return made + b"(K\x01" + shape + kind + order + raw + b"tb"


BYTES = dtype("u1", plain_state())
SOUND = {
    "data": array(b"K\x01M\x00\x0c\x86", BYTES, b"B\x00\x0c\x00\x00" + b"x" * 3072),
    "fine_labels": b"](K\x00e",
    "fine_label_names": b"](" + b"".join(text(str(label)) for label in range(100)) + b"e",
}


def entry(value: bytes, key: str) -> bytes:
    """Return a pickled data set of one image and the names of 100 classes, with ``value`` under ``key``."""
    return b"\x80\x03}" + b"".join(text(name) + {**SOUND, key: value}[name] + b"s" for name in SOUND) + b"."


HUGE = b"\x8a\x08" + struct.pack("<q", 2**40)
OBJECT_POINTER = b"B\x08\x00\x00\x00" + b"\x41" * 8
NEGATIVE = b"J\xff\xff\xff\xffJ\xf8\xff\xff\xff\x86"

FORGED = {
    "a dtype whose flags make objects of bytes": array(
        b"K\x01\x85",
        dtype("V8", b"K\x03" + text("|") + b"NNNK\x08K\x01K\x11"),
        OBJECT_POINTER,
    ),
    "the flags on plain bytes": array(b"K\x08\x85", dtype("u1", plain_state()[:-2] + b"K\x3f"), b"C\x07" + b"a" * 7),
    "an array of objects": array(b"K\x01\x85", dtype("O8", plain_state()), OBJECT_POINTER),
    "a dtype with fields": array(
        b"K\x01\x85", dtype("V8", b"K\x03" + text("|") + b"N" + text("f") + b"\x85}K\x08K\x01K\x10"), OBJECT_POINTER
    ),
    "a dtype that is an expression": array(b"K\x01\x85", dtype("u1,O", plain_state()), OBJECT_POINTER),
    "a dtype that is a list": array(b"K\x01\x85", b"]", b"C\x01a"),
    "a dtype that holds itself": array(b"K\x01\x85", BYTES + b"q\x01h\x01b", b"C\x01a"),
    "more pixels than bytes": array(HUGE + b"M\x00\x0c\x86", BYTES, b"C\x04abcd"),
    "fewer pixels than bytes": array(b"K\x01\x85", BYTES, b"C\x04abcd"),
    "negative sides": array(NEGATIVE, BYTES, b"C\x08abcdefgh"),
    "items of no size": array(HUGE + b"\x85", dtype("S0", plain_state()), b"C\x00"),
    "a shape of text": array(text("ab"), BYTES, b"C\x02ab"),
    "a shape of 100,000 sides": array(b"(" + HUGE * 100_000 + b"t", BYTES, b"C\x02ab"),
    "no text as pixels": array(b"K\x01\x85", BYTES, b"X\x03\x00\x00\x00" + "り".encode()),
    "a list as pixels": array(b"K\x01\x85", BYTES, b"]K\x01a"),
    "a call without arguments": b"cnumpy\ndtype\n)R",
    "a buffer of the wrong size": b"cnumpy.core.numeric\n_frombuffer\n(C\x03abc"
    + BYTES
    + b"K\x04\x85"
    + text("C")
    + b"tR",
    "a scalar of another size": b"cnumpy.core.multiarray\nscalar\n" + BYTES + b"C\x02ab\x86R",
    "a state of a list": b"]K\x01b",
    "a state of a global": b"c_codecs\nencode\nN}" + text("__code__") + b"Ns\x86b",
    "another codec": b"c_codecs\nencode\n" + text("x" * 9) + text("zlib_codec") + b"\x86R",
    "a shape of a codec's making": array(b"c_codecs\nencode\n" + text("a") + text("hex") + b"\x86R", BYTES, b"C\x01a"),
}


TUPLES = b")" + b"\x85" * 200_000
VALUES: dict[str, Callable[[], bytes]] = {  # in place of an array, of labels or of names
    "tuples in tuples": lambda: TUPLES,
    "lists in lists": lambda: b"]" * 100_000 + b"a" * 99_999,
    "dicts in dicts": lambda: b"}" + (text("a") + b"}") * 50_000 + b"s" * 50_000,
    "lists doubled 200 times": lambda: b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(200)),
    "a list that holds itself": lambda: b"]q\x01(h\x01h\x01e",
    "a memo of 2 ** 28 entries": lambda: b"Nr\xff\xff\xff\x0f",
    "a memo of 2 ** 31 entries": lambda: b"Nr\xff\xff\xff\x7f",
    "a memo of 10 ** 15 entries": lambda: b"Np999999999999999\n",
    "a negative memo": lambda: b"Np-1\n",
    "a number of 2 GB": lambda: b"\x8b\xff\xff\xff\x7f",
    "bytes of 4 GB": lambda: b"B\xff\xff\xff\xff",
    "bytes of an exabyte": lambda: b"\x8e" + b"\xff" * 7 + b"\x0f",
    "a bytearray of 4 GB": lambda: b"\x96" + struct.pack("<Q", 2**32),
    "a bytearray of 1 TB": lambda: b"\x96" + struct.pack("<Q", 2**40),
    "text of an exabyte": lambda: b"\x8d" + b"\xff" * 7 + b"\x0f",
    "one text in latin1 2,000 times": lambda: (
        text("x" * 1_000_000)
        + b"q\x01"
        + b"c_codecs\nencode\nq\x02"
        + text("latin1")
        + b"q\x03]("
        + b"h\x02h\x01h\x03\x86R" * 2_000
        + b"e"
    ),
    "one buffer in 2,000 arrays": lambda: (
        text("x" * 1_000_000)
        + b"q\x01"
        + BYTES
        + b"q\x02]("
        + array(b"J\x40\x42\x0f\x00\x85", b"h\x02", b"h\x01") * 2_000
        + b"e"
    ),
    "100,000 names of 4 KB": lambda: (
        text("x" * 4096)
        + b"q\x01"
        + dtype("S4096", plain_state())
        + b"h\x01\x86q\x02cnumpy.core.multiarray\nscalar\nq\x03]("
        + b"h\x03h\x02R" * 100_000
        + b"e"
    ),
    "a number of 100,000 digits": lambda: b"L" + b"9" * 100_000 + b"L\n",
    "no quotes around 1 MB": lambda: b"S" + b"a" * 1_000_000 + b"\n",
}
PICKLES: dict[str, Callable[[], bytes]] = {
    "tuples in tuples as a key": lambda: b"\x80\x02}" + TUPLES + b"Ns.",
    "tuples in tuples in a set": lambda: b"\x80\x04\x8f(" + TUPLES + b"\x90.",
    "pairs in place of the dict": lambda: b"\x80\x02](" + TUPLES + b"N\x86e.",
    "a number of 2 MB as 100,000 keys": lambda: (
        b"\x80\x02}(\x8b\x00\x00\x20\x00" + b"\1" * 2**21 + b"q\x01N" + b"h\x01N" * 100_000 + b"u."
    ),
    "2 million empty dicts": lambda: b"\x80\x02" + b"(" + b"}" * 2_000_000 + b"t" + b".",
    "2 million marks": lambda: b"\x80\x02" + b"(" * 2_000_000 + b".",
    "a frame of a petabyte": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"}.",
    "a global's name of 1 MB": lambda: b"\x80\x02c" + b"a" * 1_000_000 + b"\n\x1b[31m" + b"b" * 1_000_000 + b"\n.",
    "a global named by lists": lambda: b"\x80\x04]q\x01" + b"]q\x02(h\x01h\x01e" * 60 + b"h\x02\x93.",
}


def refused(tmp_path: Path, content: bytes) -> str:
    """Return the one-line error of a data module that reads ``content``."""
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({"data": IMAGES, "fine_labels": [*range(100)]}))
    (tmp_path / "train").write_bytes(content)
    (tmp_path / "meta").unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError) as error:
        CIFAR100DataModule(tmp_path).setup("fit")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KB
    message = str(error.value)
    assert str(tmp_path / "train") in message and len(message) - len(str(tmp_path)) < 300 and message.isprintable()
    return message


@pytest.mark.parametrize("name", FORGED)
def test_forged_array_is_refused(tmp_path: Path, name: str) -> None:
    for key in ("data", "fine_labels"):
        refused(tmp_path, entry(FORGED[name], key))


@pytest.mark.parametrize("name", FORGED)
def test_unrequested_forged_array_is_ignored_or_refused(tmp_path: Path, name: str) -> None:
    content = entry(FORGED[name], "fine_label_names")
    if name in ("a state of a list", "a scalar of another size"):
        with pytest.raises(UsageError, match=str(tmp_path)):
            read(tmp_path, content, "fine_labels")
    else:
        assert read(tmp_path, content, "fine_labels") == [[0]]


@pytest.mark.parametrize("name", VALUES)
def test_pickle_bomb_as_entry_is_refused(tmp_path: Path, name: str) -> None:
    value = VALUES[name]()
    for key in ("data", "fine_labels"):
        refused(tmp_path, entry(value, key))
    (tmp_path / "meta").write_bytes(entry(value, "fine_label_names"))
    with pytest.raises(UsageError, match="meta"):
        CIFAR100DataModule(tmp_path).read_class_names()


@pytest.mark.parametrize("name", PICKLES)
def test_pickle_bomb_is_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, PICKLES[name]())


GLOBALS = [
    "builtins getattr",
    "builtins eval",
    "numpy load",
    "numpy.core.multiarray fromfile",
    "numpy fromfile",
    "numpy.testing._private.utils runstring",
    "copyreg _reconstructor",
    "operator attrgetter",
    "codecs encode",
    "numpy._core.multiarray _reconstruct.__globals__",
    "numpy dtype.__setstate__",
    "_codecs encode.__self__",
    "numpy.core.numeric loads",
    "collections OrderedDict",
]


@pytest.mark.parametrize("name", GLOBALS)
def test_unknown_pickle_globals_are_refused_by_name(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    as_text = b"".join(b"\x8c%c" % len(part) + part.encode() for part in (module, attribute))
    for content in (
        f"c{module}\n{attribute}\n.".encode(),
        b"\x80\x04" + as_text + b"\x93.",
        f"(i{module}\n{attribute}\n.".encode(),
    ):
        assert f"asks for {name.replace(' ', '.')}" in refused(tmp_path, content)


@pytest.mark.parametrize(
    "content", [b"\x80\x02\x82\x01.", b"\x80\x02Pid\n.", b"\x80\x02NQ.", b"\x80\x02)(o.", b"\x80\x05\x97."]
)
def test_unneeded_pickle_opcodes_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(tmp_path, content)


def mutated(content: bytes, seeds: Iterable[int]) -> Iterable[bytes]:
    """Yield copies with bits flipped, parts cut out, doubled, or replaced by opcodes."""
    for seed in seeds:
        draw, copy = np.random.default_rng(seed), bytearray(content)
        for _ in range(draw.integers(1, 6)):
            at, length = int(draw.integers(len(copy))), int(draw.integers(1, 40))
            change = draw.integers(4)
            if change == 0:
                copy[at] ^= 1 << int(draw.integers(8))
            elif change == 1:
                del copy[at : at + length]
            elif change == 2:
                copy[at:at] = copy[at : at + length]
            else:
                copy[at] = int(
                    draw.choice(list(b"(.012FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x85\x86\x87\x93\x94\x8e\x96"))
                )
            copy = copy or bytearray(content)
        yield bytes(copy)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_mutated_pickles_load_or_raise_usage_error(tmp_path: Path, protocol: int) -> None:
    entries = {"data": IMAGES[:3, :30], "fine_labels": [*LABELS[:9]], "names": ["cat", "dog"]}
    messages = []
    for content in mutated(pickle.dumps(entries, protocol), range(100)):
        with contextlib.suppress(UsageError):
            read(tmp_path, content, *entries)
            continue
        with pytest.raises(UsageError) as error:
            read(tmp_path, content, *entries)
        messages.append(str(error.value))
    assert 20 < len(messages) < 100
    assert all(str(tmp_path / "file") in message and len(message) < 500 for message in messages)
