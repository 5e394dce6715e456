"""Weight files read without running anything in them, or the true reason why they cannot be."""

import hashlib
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hsakd_pl.errors import UsageError
from hsakd_pl.files import local_path

# How other files begin, that are taken for weights
OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with 'git lfs pull'",
    b"<": "a web page or other markup: the download failed",
}
NO_BOMB = 4  # times its size on disk; PyTorch does not compress


class Ignored:
    """Stands in for what others save beside their weights and nobody needs: it takes everything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


# NumPy's own constructors would let a file forge an array's memory: CRD saves its options, others accuracies and paths.
CORES = [
    f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray.scalar", "multiarray._reconstruct")
]
KINDS = ("Float64", "Float32", "Float16", "Int64", "Int32", "UInt8", "Bool", "Str")
PATHS = ("Path", "PosixPath", "WindowsPath", "_local.PosixPath", "_local.WindowsPath")
IGNORED = [
    *("argparse.Namespace", "_codecs.encode", "numpy.dtype", "numpy.ndarray", *CORES),
    *(f"numpy.dtypes.{kind}DType" for kind in KINDS),
    *(f"pathlib.{kind}" for kind in PATHS),
]


def read_weights(path: str | Path) -> Any:
    """Read a weight file on the CPU, whatever its ending; UsageError that says why one cannot be read.

    It may be PyTorch's, of this or of its first format, or of safetensors.
    """
    path = local_path("weights", path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"weight file {path} {found}: check the path, or train the network first")
    with path.open("rb") as file:
        start = file.read(64)
    try:
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path):
            return load_file(path)
        if start.startswith(b"PK"):
            _check_archive(path)
        elif kind := next((kind for begin, kind in OTHERS.items() if start.lstrip().startswith(begin)), None):
            raise UsageError(f"weight file {path} is {kind}")
        with torch.serialization.safe_globals([(Ignored, name) for name in IGNORED]), path.open("rb") as file:
            return torch.load(file, "cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"asks to run {refused[1]}, which was refused: save the state dict alone"
        else:
            reason = "cannot be read, it is truncated or no weight file: fetch or write it again"
        raise UsageError(f"weight file {path} {reason}") from error


def _check_archive(path: Path) -> None:
    """Raise UsageError unless a zip holds what torch.save writes: each member once, intact, and no larger than it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        parts = {part for name in names for part in Path(name).parts[1:]}
        if "constants.pkl" in parts or "code" in parts:
            raise UsageError(f"weight file {path} is a TorchScript file: save the state_dict() of what it holds")
        if "data.pkl" not in parts:
            raise UsageError(f"weight file {path} is a zip, but none that torch.save wrote: save a state dict with it")
        if sum(member.file_size for member in archive.infolist()) > NO_BOMB * os.path.getsize(path):
            raise UsageError(f"weight file {path} would unpack to many times its size: write it again with torch.save")
        if len(set(names)) < len(names) or (broken := archive.testzip()) is not None:
            which = "two parts of one name" if len(set(names)) < len(names) else f"a wrong check sum of {broken}"
            raise UsageError(f"weight file {path} is corrupt, it has {which}: fetch it again")


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
