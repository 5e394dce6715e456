"""Test weight files with a broken or forged pickle or header, in addition to test_weight_forgeries."""

import argparse
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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


def refusal(source: Any) -> str:
    """Return the one short reason, and check that the network is unchanged."""
    target = network(seed=1)
    with pytest.raises(UsageError) as error:
        load_weights(target, source)
    torch.testing.assert_close(target.state_dict(), network(seed=1).state_dict(), rtol=0, atol=0)
    assert len(str(error.value)) < 600
    return str(error.value)


def test_key_that_is_missing_under_a_prefix_is_named() -> None:
    weights = {f"model.{key}": tensor for key, tensor in state().items()}
    last = weights.popitem()
    assert f"1 missing: {last[0].removeprefix('model.')}" in refusal({**weights, "criterion.weight": torch.ones(1)})


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], compress: bool = False) -> None:
    """Return a zip with the same members, some with other content and its checksum."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def forged(core: bytes) -> bytes:
    """Return a pickle whose dtype claims, by forged flags, that eight bytes of the file point to an object."""
    dtype = b"cnumpy\ndtype\n(V\x4f\x38\nI00\nI01\ntR(I3\nV|\nNNNI8\nI8\nI63\ntb".replace(b"\x4f", b"V")
    array = b"c" + core + b".multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    return array + b"(I1\n(I1\nt" + dtype + b"I00\nS'AAAAAAAA'\ntb."


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_weight_files_never_reach_numpy_constructors(tmp_path: Path, core: bytes) -> None:
    torch.save({"net": state(), "beside": 0}, tmp_path / "whole.pth")
    rewritten(tmp_path / "whole.pth", tmp_path / "forged.pth", lambda n, c: forged(core) if "data.pkl" in n else c)
    for content in ((tmp_path / "forged.pth").read_bytes(), forged(core), b"\x80\x02" + forged(core)):
        (tmp_path / "forged.pth").write_bytes(content)
        refusal(tmp_path / "forged.pth")


def test_unpickling_stand_ins_are_harmless(tmp_path: Path) -> None:
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
def test_pickles_without_weights_raise(tmp_path: Path, payload: bytes) -> None:
    torch.save(state(), tmp_path / "whole.pth")
    rewritten(tmp_path / "whole.pth", tmp_path / "zip.pth", lambda n, c: payload if n.endswith("data.pkl") else c)
    (tmp_path / "bare.pth").write_bytes(payload)
    for name in ("zip.pth", "bare.pth"):
        assert f"{tmp_path / name}" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "header", [b"{}", b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"{" * 50, b"\xff" * 9]
)
def test_safetensors_with_wrong_header_raise(tmp_path: Path, header: bytes) -> None:
    for length in (len(header), 2**40, 2**63):
        (tmp_path / "weights.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(4))
        assert "weights.safetensors" in refusal(tmp_path / "weights.safetensors")


def test_byte_stream_is_not_accepted_as_state_dict() -> None:
    assert "contains no state dict" in refusal({"net": io.BytesIO(b"")})
