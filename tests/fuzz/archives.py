"""Forge weight files: members of torch's zip, the pickles of its older format, the header of safetensors."""

import argparse
import io
import json
import pickle
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuzz.mutations import EXTREMES, Change
from fuzz.pickles import exhausting, forged_dtype, hostile, reassembled

Members = list[tuple[str, bytes]]
# What a reader may understand as well as refuse
LENIENT = {"sparse", "an array", "None as a key", "keys of bytes", "deep", "cyclic beside"}


def saved(content: Any, legacy: bool = False) -> bytes:
    """Return the bytes of torch.save, equal at every call: the older format names storages by their addresses."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        return in_order(file.getvalue()) if legacy else file.getvalue()


class Stub(dict[Any, Any]):
    """Replace any object of a pickle."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass


def in_order(data: bytes) -> bytes:
    """Return the older format with storages numbered and stored in the order of their use instead of by address."""
    sizes: dict[str, int] = {}

    class Storages(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return getattr(torch, name) if name.endswith("Storage") else Stub

        def persistent_load(self, pid: Any) -> Stub:
            sizes[pid[2]] = pid[4] * pid[1].dtype.itemsize
            return Stub()

    starts = pickle_starts(data)
    Storages(io.BytesIO(data[starts[3] :])).load()
    contents, at = {}, starts[5]
    for key in pickle.loads(data[starts[4] :]):
        contents[key] = data[at : at + 8 + sizes[key]]
        at += len(contents[key])
    changed = data[: starts[4]]
    for number, key in enumerate(sizes, 1000):
        changed = changed.replace(text_of(key.encode()), text_of(b"%d" % number))
    keys = pickle.dumps([str(number) for number in range(1000, 1000 + len(sizes))], 2)
    return changed + keys + b"".join(contents[key] for key in sizes)


def text_of(raw: bytes) -> bytes:
    """Return BINUNICODE of ASCII bytes."""
    return b"X" + struct.pack("<I", len(raw)) + raw


def members_of(data: bytes) -> Members:
    """Return the names and contents of a zip's members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zipped(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip with correct checksums."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # duplicate names
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


@lru_cache
def zeros_deflated(mebibytes: int) -> tuple[bytes, int]:
    """Return deflated zeros and their checksum."""
    piece = bytes(1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    one = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(mebibytes):
        crc = zlib.crc32(piece, crc)
    return one * mebibytes + zlib.compressobj(9, zlib.DEFLATED, -15).flush(), crc


def bomb(members: Members, mebibytes: int, victim: str) -> bytes:
    """Return a zip whose members ending in ``victim`` unpack to the given MiB of zeros."""
    local, central = b"", b""
    for name, content in members:
        raw, crc, size, method = content, zlib.crc32(content), len(content), 0
        if name.endswith(victim):
            (raw, crc), size, method = zeros_deflated(mebibytes), mebibytes << 20, 8
        encoded = name.encode()
        fields = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, crc, len(raw), size, len(encoded), 0)
        central += b"PK\1\2\x14\0" + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + encoded
        local += b"PK\3\4" + fields + encoded + raw
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(central), len(local), 0)
    return local + central + b"PK\5\6" + end


def forge_zip(rng: Random, data: bytes) -> Change:
    """Change a member and repair the checksums."""
    members = members_of(data)
    index = rng.randrange(len(members))
    pickle_at = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    name, content = members[index]
    folder = name.partition("/")[0]
    way = rng.randrange(12)
    if way <= 3:
        try:
            what, changed = reassembled(rng, members[pickle_at][1])
        except Exception as error:
            raise AssertionError("the seed's own pickle cannot be taken apart") from error
        members[pickle_at] = (members[pickle_at][0], changed)
        return Change(f"data.pkl: {what}", zipped(members), forged=True)
    if way == 4:
        make_pickle = rng.choice((hostile, exhausting, forged_dtype))
        members[pickle_at] = (members[pickle_at][0], make_pickle(rng))
        return Change(f"data.pkl: {make_pickle.__name__}", zipped(members), forged=True, refuse=True)
    if way == 5:
        del members[index]
        return Change(f"{name} removed", zipped(members), forged=True)
    if way == 6:
        members.insert(rng.randrange(len(members)), (name, rng.choice((content, content[::-1], b""))))
        return Change(f"{name} twice", zipped(members), forged=True)
    if way == 7:
        to = rng.choice(
            (f"../{name}", f"/{name}", f"other/{name}", name.upper(), f"{folder}/code/x.py", f"{folder}/constants.pkl")
        )
        members[index] = (to, content)
        return Change(f"{name} renamed {to}", zipped(members), forged=True)
    if way == 8:
        changed = rng.choice(
            (content[:-1], content + b"\0", b"", content * 3, bytes(len(content)), b"\xff" * len(content))
        )
        members[index] = (name, changed)
        return Change(f"{name} of other bytes", zipped(members), forged=True)
    if way == 9:
        return Change("deflated", zipped(members, zipfile.ZIP_DEFLATED), forged=True)
    if way == 10:
        victim = rng.choice(("data.pkl", "data/0", "version", "byteorder"))
        return Change(
            f"{victim} unpacks to 3 GiB", bomb(members, 3072, victim), forged=True, refuse=victim == "data.pkl"
        )
    other = rng.choice((b"big", b"little", b"middle", b"\xff\xfe", b"9999999999", b"-1", b""))
    members = [(n, other if n.endswith(("byteorder", "version")) else c) for n, c in members]
    return Change(f"byteorder and version {other!r}", zipped(members), forged=True)


def forge_legacy(rng: Random, data: bytes) -> Change:
    """Change an instruction in one of the consecutive pickles, or replace a pickle by a hostile one."""
    starts = pickle_starts(data)
    index = rng.randrange(len(starts) - 1)
    start, end = starts[index : index + 2]
    if rng.random() < 0.3:
        make_pickle = rng.choice((hostile, exhausting, forged_dtype))
        return Change(
            f"pickle {index}: {make_pickle.__name__}", data[:start] + make_pickle(rng) + data[end:], forged=True
        )
    what, changed = reassembled(rng, data[start:end])
    return Change(f"pickle {index}: {what}", data[:start] + changed + data[end:], forged=True)


def pickle_starts(data: bytes) -> list[int]:
    """Return the offsets of the older format's five pickles and the end of the last."""
    file, starts = io.BytesIO(data), [0]
    for _ in range(5):
        for opcode, _argument, _at in pickletools.genops(file):
            last = opcode.code
        assert last == "."
        starts.append(file.tell())
    return starts


def forge_header(rng: Random, data: bytes) -> Change:
    """Change safetensors' JSON header, with a correct length unless that is the change."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    raw: bytes | None = None
    way = rng.randrange(10)
    what, refuse = f"{name}: ", False
    if way == 0:
        entry["shape"] = rng.choice(
            ([], [0], [-1], [2**32, 2**32], [1.5], "4", None, [len(body)], entry["shape"][::-1])
        )
        what += f"shape {entry['shape']}"
    elif way == 1:
        kinds = ("F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "C64", "F8_E4M3", "F4", "x", 3, None)
        entry["dtype"] = rng.choice(kinds)
        what += f"dtype {entry['dtype']}"
    elif way == 2:
        start, end = entry["data_offsets"]
        offsets = (
            [end, start],
            [start, 2**63],
            [-1, end],
            [0, end - start],
            [start + 4, end + 4],
            [start],
            "x",
            [1.5, end],
        )
        entry["data_offsets"] = rng.choice(offsets)
        what += f"offsets {entry['data_offsets']}"
    elif way == 3:
        del entry[rng.choice(list(entry))]
        what += "a field missing"
    elif way == 4:
        header[name] = rng.choice((None, [], 3, "x", {}, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}))
        what += f"{header[name]}"
    elif way == 5:
        header["__metadata__"] = rng.choice(
            (None, 3, [], {"format": 1}, {"a": None}, {"format": "pt\ud800"}, {"x": "y" * 10**6})
        )
        what = "metadata"
    elif way == 6:
        text = json.dumps(header)
        twice = json.dumps({name: {**entry, "shape": [0], "data_offsets": [0, 0]}})
        raw, what, refuse = (text[:-1] + ", " + twice[1:]).encode(), f"{name} twice", True
    elif way == 7:
        depth = rng.choice((100, 100_000, 3_000_000))
        raw = rng.choice((b"[" * depth, b'{"a":' * depth, b" " * depth, b'{"__metadata__":' + b"[" * depth))
        what, refuse = f"{depth} levels", True
    elif way == 8:
        raw = json.dumps(header).encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp037")))
        what, refuse = "another encoding", False
    else:
        size = rng.choice(EXTREMES)
        return Change(f"header of {size} bytes", struct.pack("<Q", size) + data[8:], forged=True)
    raw = json.dumps(header).encode() if raw is None else raw
    return Change(what, struct.pack("<Q", len(raw)) + raw + body, forged=True, refuse=refuse)


def odd_state(rng: Random, state: dict[str, Tensor]) -> tuple[str, Any, bool]:
    """Return a state dict with an oddity: its name, the content, and whether it must be refused."""
    key = rng.choice([key for key in state if state[key].is_floating_point()])
    weight = state[key]
    cyclic: dict[str, Any] = {}
    cyclic["state_dict"] = cyclic["net"] = cyclic
    deep: Any = state
    for _ in range(400):
        deep = {"net": deep}
    tensors = {
        "int64": weight.long(),
        "bool": weight > 0,
        "complex": weight.to(torch.complex64),
        "uint8": weight.byte(),
        "NaN": torch.full_like(weight, float("nan")),
        "inf": torch.full_like(weight, float("inf")),
        "float64 beyond float32": torch.full_like(weight, 1.0, dtype=torch.float64) * 1e300,
        "sparse": weight.to_sparse(),
        "meta": torch.empty_like(weight, device="meta"),
        "empty": weight[:0],
        "scalar": torch.tensor(1.0),
        "huge by stride 0": torch.zeros(1).expand(10**6, 10**6),
        "huge meta": torch.empty(10**7, 10**7, device="meta"),
        "None": None,
        "a number": 1.5,
        "a list": weight.tolist(),
        "a string": "x",
        "an array": weight.numpy(),
        "a numpy scalar": np.float64(1),
        "more dimensions": weight[None],
    }
    kept = {
        "float16": weight.half(),
        "bfloat16": weight.bfloat16(),
        "float64": weight.double(),
        "parameter": torch.nn.Parameter(weight),
        "not contiguous": weight.repeat(2, *[1] * (weight.dim() - 1))[::2],
        "stride 0": torch.zeros(1).expand(weight.shape),
        "negated": torch._neg_view(weight),
    }
    contents = {
        "cyclic": cyclic,
        "cyclic beside": {**state, "x": cyclic},
        "a list": list(state.values()),
        "empty": {},
        "a tensor": weight,
        "a string": "x",
        "None": None,
        "deep": deep,
        "keys of bytes": {k.encode(): v for k, v in state.items()},
        "keys of integers": dict(enumerate(state.values())),
        "None as a key": {**state, None: weight},
        "tuples as keys": {(k,): v for k, v in state.items()},
        "nested": {"net": {"net": {"net": 3}}},
        "one missing": {k: v for k, v in state.items() if k != key},
        "one more": {**state, "more": weight},
        "the envelope of something else": {"net": [1], "state_dict": 3, "model": None},
        "keys very long": {k * 10**5: v for k, v in state.items()},
        "a surrogate": {**state, "\ud800": weight},
    }
    harmless = {
        "ordered": OrderedDict(state),
        "options beside": {"net": state, "opt": argparse.Namespace(lr=0.1)},
        "module": {f"module.{k}": v for k, v in state.items()},
        "numbers beside": {"model": state, "epoch": 3, "x": 1j},
    }
    way = rng.randrange(4)
    if way == 0:
        name = rng.choice(list(tensors))
        return f"{key} {name}", {**state, key: tensors[name]}, name not in LENIENT
    if way == 1:
        name = rng.choice(list(kept))
        return f"{key} {name}", {**state, key: kept[name]}, False
    name = rng.choice(list(contents if way == 2 else harmless))
    return (name, contents[name], name not in LENIENT) if way == 2 else (name, harmless[name], False)


def resaved(legacy: bool, state: dict[str, Tensor]) -> Any:
    """Return a mutation that writes an odd state dict as torch does."""

    def mutation(rng: Random, _: bytes) -> Change:
        name, content, refuse = odd_state(rng, state)
        try:
            data = saved(content, legacy)
        except (RuntimeError, pickle.PicklingError, NotImplementedError, RecursionError, UnicodeEncodeError):
            data = saved({"net": name}, legacy)
        return Change(f"saved whole: {name}", data, forged=True, refuse=refuse)

    return mutation
