"""Test that harmless weight files of every origin load and that others are refused for their own reason, cheaply."""

import argparse
import datetime
import pickle
import struct
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file

from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import file_sha256
from hsakd_pl.networks.weights import load_weights

FEW = OrderedDict[str, torch.Tensor]


class Small(nn.Module):
    """Provide a network with every kind of entry: weights, running statistics, a counter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)


def state() -> dict[str, torch.Tensor]:
    return dict(Small(1).state_dict())


def assert_loads(source: Any) -> None:
    loaded = load_weights(Small(2), source)
    torch.testing.assert_close(loaded.state_dict(), state(), rtol=0, atol=0)


def refusal(source: Any, strict: bool = True) -> str:
    """Return the one short message, and check that the network is unchanged."""
    target = Small(2)
    with pytest.raises(UsageError) as error:
        load_weights(target, source, strict)
    torch.testing.assert_close(target.state_dict(), Small(2).state_dict(), rtol=0, atol=0)
    assert len(str(error.value)) < 500
    assert "Traceback" not in str(error.value)
    return str(error.value)


BESIDE = {
    "scalar": np.float64(0.75),
    "integer": np.int32(3),
    "array": np.arange(6.0).reshape(2, 3),
    "names": np.array(["cat", "dog"]),
    "objects": np.array([{"a": 1}, None], dtype=object),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "options": argparse.Namespace(lr=0.1, folder=Path("runs")),
    "namespace": types.SimpleNamespace(when=datetime.datetime(2020, 1, 1)),
    "bytes": b"\x00\xff",
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_with_companions_of_the_weights_load(tmp_path: Path, beside: str, zipped: bool) -> None:
    torch.save({"net": state(), "x": BESIDE[beside]}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_loads(tmp_path / "w.pth")


@pytest.mark.parametrize("beside", ["scalar", "array"])
def test_weights_pickled_by_numpy_1_and_2_load(tmp_path: Path, beside: str) -> None:
    torch.save({"net": state(), "x": BESIDE[beside]}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        (tmp_path / "w.pth").write_bytes(content.replace(old, new))
        assert_loads(tmp_path / "w.pth")


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin", ""])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_file_format_is_detected_by_content(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / f"weights{ending}"
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "zip")
    assert_loads(path)
    assert len(file_sha256(path)) == 64


OTHERS = {
    b"": "it is empty",
    b"version https://git-lfs.github.com/spec/v1\noid": "it is a pointer of Git LFS",
    b"\n<!DOCTYPE html><html>404": "it is a web page",
    b"404: not found": "it is text",
    b"\x89HDF\r\n\x1a\n" + bytes(90): "it is an HDF5 file",
    b"\x08\x07\x12\x07pytorch\x1a\x03" + bytes(90): "it is a graph of ONNX",
    b"\x93NUMPY\x01\x00" + bytes(90): "it is a NumPy array",
    b"\x1f\x8b\x08" + bytes(90): "it is a compressed archive",
    b"weights" + bytes(250) + b"ustar\x00" + bytes(90): "it is a tar archive",
    pickle.dumps({"a": 1}, 2): "it is a pickle that torch.save did not write",
    pickle.dumps({"a": 1}, 5): "it is a pickle that torch.save did not write",
    b"PK\x03\x04" + bytes(90): "it is truncated or no weight file",
    bytes(range(200, 256)): "it is truncated or no weight file",
}


@pytest.mark.parametrize("content", OTHERS, ids=lambda content: OTHERS[content])
def test_other_file_types_are_named_in_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert f"weight file {tmp_path / 'w.pth'} cannot be read, {OTHERS[content]}" in refusal(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
def test_other_zip_types_are_named_in_error(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    np.savez(tmp_path / "arrays.npz", weight=np.ones(3))
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    for name, cause in (
        ("script.pt", "a TorchScript file: save its state_dict()"),
        ("arrays.npz", "a zip of NumPy's"),
        ("model.keras", "a zip of another program's"),
    ):
        assert cause in refusal(tmp_path / name)


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_unsupported_pickle_protocol_is_named(tmp_path: Path, protocol: int, zipped: bool) -> None:
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(state(), tmp_path / "w.pth", **options)
    assert f"written with pickle_protocol {protocol}" in refusal(tmp_path / "w.pth")


def test_pickled_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2), tmp_path / "w.pth")
    assert "asks to run torch.nn.modules.linear.Linear, which was refused: save the state dict" in refusal(
        tmp_path / "w.pth"
    )


def test_weight_paths_expand_tilde_and_refuse_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state(), tmp_path / "w.pth")
    assert_loads("~/w.pth")
    assert file_sha256("~/w.pth") == file_sha256(tmp_path / "w.pth")
    for url in ("https://example.org/w.pth", "hf://someone/w", "s3://bucket/w"):
        assert f"{url} is a URL" in refusal(url)


def test_checksum_mismatch_is_detected(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    for key in ("layer.weight", "norm.running_var", "norm.weight"):
        damaged = bytearray(whole)
        damaged[whole.index(state()[key].numpy().tobytes()) + 2] ^= 1
        (tmp_path / "w.pth").write_bytes(damaged)
        assert "damaged, the checksum of w/data/" in refusal(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["w/data.pkl", "w/DATA.PKL", "w/data/0"])
def test_duplicate_zip_members_are_refused(tmp_path: Path, name: str) -> None:
    torch.save(state(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        archive.writestr(name, b"")
    assert "two of its members have one name" in refusal(tmp_path / "w.pth")


@pytest.mark.parametrize("member", ["w/data/0", "w/junk", "w/data.pkl"])
def test_zip_bomb_is_refused(tmp_path: Path, member: str) -> None:
    torch.save(state(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as new:
        for name in {*old.namelist(), member}:
            new.writestr(name, bytes(10_000_000) if name == member else old.read(name))
    assert "that expands to 100" in refusal(tmp_path / "bomb.pth")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(
    elements: int = 6, offset: int = 0, size: tuple[int, ...] = (2, 3), stride: tuple[int, ...] = (3, 1)
) -> bytes:
    """Return the opcodes of a float tensor over storage 0, of which 24 bytes are in the file."""
    number = [b"J" + struct.pack("<i", value) for value in (elements, offset)]
    shapes = [b"(" + b"".join(b"J" + struct.pack("<i", n) for n in shape) + b"t" for shape in (size, stride)]
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number[0] + b"tQ"
    rest = number[1] + b"".join(shapes) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest


def tower(floors: int = 60) -> bytes:
    """Return opcodes of nested pairs of one tuple: small, but hashing takes 2 to the power of ``floors``."""
    return b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (floor, floor, floor + 1) for floor in range(floors))


def grown(doublings: int = 24) -> bytes:
    """Return opcodes of 1,000 letters that a codec doubles repeatedly."""
    encode = b"c_codecs\nencode\n"
    letters = encode + text("x" * 1000) + text("latin1") + b"\x86R"
    return encode * doublings + letters + (text("hex") + b"\x86R") * doublings


FORGED = {  # what is under the key "x"
    "a bytearray of 2 GB": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "the same of Python 2": b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "a key that takes ages": b"}" + tower() + b"K\x01s",
    "a set that takes ages": b"cbuiltins\nset\n]" + tower() + b"a\x85R",
    "a codec": grown(),
    "a large storage": tensor(elements=10**9),
    "beyond the storage": tensor(size=(1000, 1000), stride=(1000, 1)),
    "behind the storage": tensor(offset=10**9),
    "before the storage": tensor(stride=(-3, -1)),
    "an endless view": tensor(size=(10**9, 10**9), stride=(0, 0)),
    "a function": b"cbuiltins\neval\n" + text("1/0") + b"\x85R",
    "a forged dtype": b"cnumpy\ndtype\n" + text("O8") + b"\x85R(K\x03" + text("|") + b"NNNK\x08K\x08K?tb",
    "no callable": text("x") + b")R",
    "an empty stack": b"RRR",
    "a foreign opcode": b"\x8f\x90",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", FORGED)
def test_forged_pickles_use_no_time_or_memory(tmp_path: Path, kind: str, zipped: bool) -> None:
    pickled = b"\x80\x02}" + text("x") + FORGED[kind] + b"s."
    if zipped:
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            for name, content in {"data.pkl": pickled, "version": b"3\n", "data/0": bytes(24)}.items():
                archive.writestr(f"w/{name}", content)
    else:
        start = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        keys = pickle.dumps(["0"], 2)
        (tmp_path / "w.pth").write_bytes(b"".join(start) + pickled.replace(b"tQ", b"NtQ") + keys + bytes(32))
    refusal(tmp_path / "w.pth")


def test_state_dict_with_forged_methods_is_refused() -> None:
    forged: FEW = OrderedDict(state())
    forged.__dict__.update(dict.fromkeys(("get", "items", "keys", "values"), 3))
    assert_loads(forged)
    assert_loads({"net": forged})


@pytest.mark.parametrize("envelope", ["net", "model_state_dict", "state_dict_ema", "model_ema", "params", "weights"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "student.", "encoder.", "net.", "model.backbone.", "any.thing.at.all."]
)
def test_nested_envelopes_and_prefixes_load(envelope: str, prefix: str) -> None:
    inside = {f"{prefix}{key}": value for key, value in state().items()}
    assert_loads({envelope: inside, "epoch": 3})
    assert_loads({"student": {envelope: inside}})


def test_peer_prefixes_load() -> None:
    pair = {f"model.net{peer}.{key}": value for peer in (1, 2) for key, value in state().items()}
    loaded = load_weights([Small(3), Small(4)], pair)
    assert all(torch.equal(peer.layer.weight, state()["layer.weight"]) for peer in loaded)


def test_missing_state_dict_error_describes_content() -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    for source, found in (
        ({"weights_v2": state(), "epoch": 3}, "found weights_v2 (dict), epoch (int)"),
        ({"net": {**state(), "step": 3}}, "found step (int)"),
        (endless, "found model (dict)"),
        ({0: torch.ones(2)}, "0 is a key of the type int"),
        ({"net": {f"student.{key}": value for key, value in FEW(other=torch.ones(1)).items()}}, "begin with student."),
        ({**state(), "module.layer.bias": torch.ones(2)}, "keys both with and without module."),
    ):
        assert found in refusal(source)


def test_first_of_two_envelopes_is_used_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert_loads({"model_ema": Small(5).state_dict(), "model": state(), "params": {"lr": 0.1}})
    assert "holds weights under model, model_ema: those under model are taken" in caplog.text


def test_missing_norm_counters_are_accepted() -> None:
    assert_loads({key: value for key, value in state().items() if "num_batches" not in key})


CASTS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = [
    ("layer.weight", torch.Tensor.long, "layer.weight is torch.int64, the network has torch.float32"),
    ("layer.bias", torch.Tensor.bool, "layer.bias is torch.bool"),
    ("norm.weight", torch.Tensor.byte, "norm.weight is torch.uint8"),
    ("norm.bias", torch.Tensor.cfloat, "norm.bias is torch.complex64"),
    (
        "norm.num_batches_tracked",
        torch.Tensor.float,
        "num_batches_tracked is torch.float32, the network has torch.int64",
    ),
    ("norm.num_batches_tracked", torch.Tensor.bool, "num_batches_tracked is torch.bool"),
    ("layer.weight", lambda value: value.double() + 1e300, "layer.weight is NaN or infinite in torch.float32"),
    ("layer.weight", lambda value: value / 0, "layer.weight is NaN or infinite"),
    ("norm.running_var", lambda value: value * float("nan"), "norm.running_var is NaN or infinite"),
    ("layer.weight", torch.Tensor.to_sparse, "layer.weight is a torch.sparse_coo tensor"),
    ("layer.weight", torch.Tensor.to_sparse_csr, "layer.weight is a torch.sparse_csr tensor"),
    ("layer.weight", lambda value: value.to("meta"), "layer.weight is a meta tensor"),
    ("layer.bias", lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "layer.bias is a quantised tensor"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("key", "change", "message"), CASTS, ids=[message for _, _, message in CASTS])
def test_invalid_tensor_dtypes_are_refused(tmp_path: Path, key: str, change: Any, message: str) -> None:
    weights = {**state(), key: change(state()[key])}
    assert message in refusal(weights)
    assert message in refusal(weights, strict=False)
    torch.save(weights, tmp_path / "w.pth")
    assert f"{tmp_path / 'w.pth'}: " in (found := refusal(tmp_path / "w.pth")) and message in found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_are_cast(dtype: torch.dtype) -> None:
    weights = {key: value.to(dtype) if value.is_floating_point() else value.int() for key, value in state().items()}
    loaded = load_weights(Small(2), weights).state_dict()
    assert all(torch.equal(value, weights[key].to(value.dtype)) for key, value in loaded.items())


def test_non_strict_load_counts_loaded_tensors(caplog: pytest.LogCaptureFixture) -> None:
    weights = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(5), "more": torch.ones(1)}
    load_weights(Small(2), weights, strict=False)
    assert "1 of 3 tensors loaded, 2 left out; the network has 7" in caplog.text
    for nothing in ({"more": torch.ones(1)}, {"norm.num_batches_tracked": torch.tensor(3)}):
        assert "does not fit Small" in refusal(nothing, strict=False)


def test_failed_peer_load_changes_no_peer() -> None:
    for bad in (torch.full((2, 3), torch.nan), torch.ones(2, 3).long(), torch.ones(3, 2)):
        peers = [Small(3), Small(4)]
        pair = {f"net{peer}.{key}": value for peer in (1, 2) for key, value in state().items()}
        with pytest.raises(UsageError, match=r"layer\.weight"):
            load_weights(peers, {**pair, "net2.layer.weight": bad})
        assert torch.equal(peers[0].layer.weight, Small(3).layer.weight)
