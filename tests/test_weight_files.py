"""Weight files of every origin: what is harmless is read, what is not is refused for its true reason."""

import argparse
import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file

from hsakd_pl import create_network, load_weights
from hsakd_pl.errors import UsageError
from hsakd_pl.files.weights import StandIn, read_weights
from hsakd_pl.networks import Network

NAME = "resnet8"


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return create_network(NAME, 4, branches=False)


def state() -> dict[str, torch.Tensor]:
    return network().state_dict()


def assert_loaded(source: Any) -> None:
    loaded = load_weights(network(seed=1), source)
    torch.testing.assert_close(loaded.state_dict(), state(), rtol=0, atol=0)


def refusal(source: Any) -> str:
    """The one short reason, after which the network is what it was."""
    target = network(seed=1)
    with pytest.raises(UsageError) as error:
        load_weights(target, source)
    torch.testing.assert_close(target.state_dict(), network(seed=1).state_dict(), rtol=0, atol=0)
    assert len(str(error.value)) < 600
    return str(error.value)


BESIDE: dict[str, Any] = {
    "a scalar": np.float64(0.75),
    "an integer": np.int64(3),
    "an array": np.arange(6.0).reshape(2, 3),
    "an array of names": np.array(["cat", "dog"]),
    "an array in another order": np.asfortranarray(np.ones((2, 3), np.float32)),
    "options": argparse.Namespace(lr=0.1, folder=Path("runs")),
    "bytes": b"\x00\xff",
    "a set": {1, 2},
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_saved_beside_weights_is_harmless(tmp_path: Path, beside: str, zipped: bool) -> None:
    content = {"net": state(), "beside": BESIDE[beside]}
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert_loaded(tmp_path / "weights.pth")


@pytest.mark.parametrize("names", [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")])
def test_of_either_numpy(tmp_path: Path, names: tuple[bytes, bytes]) -> None:
    torch.save({"net": state(), "acc": np.float64(1)}, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(content.replace(*names))
    assert_loaded(tmp_path / "weights.pth")


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin", ""])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_content_decides_not_the_ending(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / f"weights{ending}"
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "zip")
    assert_loaded(path)


ENVELOPES = ["net", "state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "params", "weights"]


@pytest.mark.parametrize("envelope", [*ENVELOPES, "student"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "student.", "encoder.", "net.backbone."])
def test_envelopes_and_prefixes_of_all_keys(envelope: str, prefix: str) -> None:
    assert_loaded({envelope: {f"{prefix}{key}": tensor for key, tensor in state().items()}, "epoch": 3})


def test_envelopes_in_envelopes() -> None:
    assert_loaded({"state_dict": {"model": state()}})
    endless: dict[str, Any] = {}
    endless["net"] = endless
    assert "holds no state dict" in refusal(endless)


def test_a_prefix_of_some_keys_is_named() -> None:
    weights = {f"model.{key}": tensor for key, tensor in state().items()}
    assert "unexpected: model.stem" in refusal({**weights, "criterion.weight": torch.ones(1)})


def test_counters_of_batches_may_be_missing() -> None:
    assert_loaded({key: tensor for key, tensor in state().items() if not key.endswith("num_batches_tracked")})


def first() -> str:
    return next(iter(state()))


CASTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int64": lambda tensor: (100 * tensor).long(),
    "bool": lambda tensor: tensor > 0,
    "uint8": lambda tensor: tensor.to(torch.uint8),
    "complex64": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.parametrize("kind", CASTS)
def test_other_kinds_of_numbers_are_not_cast(kind: str) -> None:
    reason = refusal({key: CASTS[kind](t) if key == first() else t for key, t in state().items()})
    assert f"{first()} is torch.{kind}, the network has torch.float32" in reason


def test_a_counter_that_is_no_integer() -> None:
    weights = state()
    key = next(key for key in weights if key.endswith("num_batches_tracked"))
    assert f"{key} is torch.float32, the network has torch.int64" in refusal({**weights, key: torch.tensor(1.5)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_precision_load(dtype: torch.dtype) -> None:
    weights = {key: t.to(dtype) if t.is_floating_point() else t for key, t in state().items()}
    loaded = load_weights(network(seed=1), weights)
    assert all(torch.equal(t, weights[key].to(t.dtype)) for key, t in loaded.state_dict().items())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_finite_numbers(value: str) -> None:
    weights = state()
    weights[first()].view(-1)[3] = float(value)
    assert f"{first()} is NaN or infinite in torch.float32" in refusal(weights)


SPECIAL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SPECIAL)
def test_tensors_that_are_not_dense(tmp_path: Path, kind: str) -> None:
    torch.save({key: SPECIAL[kind](t) if key == first() else t for key, t in state().items()}, tmp_path / "weights.pth")
    assert re.search(rf"{first()} is a \S*{kind}\S* tensor: save a state dict", refusal(tmp_path / "weights.pth"))


def test_keys_that_are_no_names() -> None:
    assert "0 is a key of the type int" in refusal({0: torch.ones(2), 1: torch.ones(2)})


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], compress: bool = False) -> None:
    """A zip with the same members, some of them with other content and the check sum that belongs to it."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_a_wrong_check_sum(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state(), path)
    content = bytearray(path.read_bytes())
    raw = state()[first()].numpy().tobytes()
    content[content.index(raw) + 5] ^= 1
    path.write_bytes(content)
    assert "it is damaged, the checksum of" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(archive.namelist()[-1], b"other")
    assert "two of its members have one name" in refusal(path)


def test_a_zip_that_expands_to_many_times_its_size(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(5_000_000)}, tmp_path / "whole.pth")
    rewritten(tmp_path / "whole.pth", tmp_path / "bomb.pth", lambda _, content: content, compress=True)
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    assert "bytes that expands to" in refusal(tmp_path / "bomb.pth")


@pytest.mark.filterwarnings("ignore")
def test_other_files_are_called_by_their_names(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    np.savez(tmp_path / "arrays.npz", weight=np.ones(3))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "page.pth").write_text("\n<!DOCTYPE html><html>404</html>")
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for name, reason in (
        ("script.pt", "it is a TorchScript file: save its state_dict"),
        ("arrays.npz", "it is a zip of NumPy's, not of torch.save"),
        ("array.npy", "it is a NumPy array"),
        ("keras.h5", "it is an HDF5 file"),
        ("page.pth", "it is a web page"),
        ("lfs.pth", "it is a pointer of Git LFS"),
    ):
        assert reason in refusal(tmp_path / name)


@pytest.mark.parametrize("url", ["https://example.org/weights.pth", "hf://someone/weights"])
def test_a_url_is_no_file(url: str) -> None:
    assert f"{url} is a URL" in refusal(url)


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state(), tmp_path / "weights.pth")
    assert_loaded("~/weights.pth")


def forged(core: bytes) -> bytes:
    """A pickle whose dtype claims, by forged flags, that eight bytes of the file are a pointer to an object."""
    dtype = b"cnumpy\ndtype\n(V\x4f\x38\nI00\nI01\ntR(I3\nV|\nNNNI8\nI8\nI63\ntb".replace(b"\x4f", b"V")
    array = b"c" + core + b".multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return array + b"(I1\n(I1\nt" + dtype + b"I00\nS'AAAAAAAA'\ntb."


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_no_file_reaches_numpys_constructors(tmp_path: Path, core: bytes) -> None:
    torch.save({"net": state(), "beside": 0}, tmp_path / "whole.pth")
    rewritten(tmp_path / "whole.pth", tmp_path / "forged.pth", lambda n, c: forged(core) if "data.pkl" in n else c)
    for content in ((tmp_path / "forged.pth").read_bytes(), forged(core), b"\x80\x02" + forged(core)):
        (tmp_path / "forged.pth").write_bytes(content)
        refusal(tmp_path / "forged.pth")


def test_what_stands_in_has_no_power(tmp_path: Path) -> None:
    torch.save({"acc": np.arange(3.0), "options": argparse.Namespace(lr=1)}, tmp_path / "weights.pth")
    found = read_weights(tmp_path / "weights.pth")
    assert all(isinstance(value, StandIn) and not vars(value) for value in found.values())


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps([[]]),
        b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b".",
        b"\x80\x02}q\x00(X\x03\x00\x00\x00netq\x01h\x00u.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02c__builtin__\neval\n(S'1'\ntR.",
    ],
    ids=["no dict", "deep", "in itself", "a long frame", "a long number", "a long text", "eval"],
)
def test_pickles_that_are_no_weights(tmp_path: Path, payload: bytes) -> None:
    torch.save(state(), tmp_path / "whole.pth")
    rewritten(tmp_path / "whole.pth", tmp_path / "zip.pth", lambda n, c: payload if n.endswith("data.pkl") else c)
    (tmp_path / "bare.pth").write_bytes(payload)
    for name in ("zip.pth", "bare.pth"):
        assert f"{tmp_path / name}" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "header", [b"{}", b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"{" * 50, b"\xff" * 9]
)
def test_safetensors_with_a_wrong_header(tmp_path: Path, header: bytes) -> None:
    for length in (len(header), 2**40, 2**63):
        (tmp_path / "weights.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(4))
        assert "weights.safetensors" in refusal(tmp_path / "weights.safetensors")


def test_strict_false_says_what_it_loads(caplog: pytest.LogCaptureFixture) -> None:
    weights = {key: tensor for key, tensor in state().items() if not key.startswith("head")}
    load_weights(network(seed=1), {**weights, "more": torch.ones(1)}, strict=False)
    assert f"{len(weights)} of {len(weights) + 1} tensors loaded, 1 left out" in caplog.text
    with pytest.raises(UsageError, match=r"does not fit CIFARResNet of 4 classes"):
        load_weights(network(), {"more": torch.ones(1)}, strict=False)


def test_a_stream_of_bytes_is_no_state_dict() -> None:
    assert "holds no state dict" in refusal({"net": io.BytesIO(b"")})
