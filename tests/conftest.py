"""Fixtures: where the recorded parity data, the real images and the shipped teacher lie."""

import gc
import logging
import os
import tarfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores

if find_spec("pl_bolts"):
    import_module("hsakd_pl.integrations.bolts")  # pytest-xdist's controller makes its classes of warnings again

SHARED = Path(os.environ.get("HSAKD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_collection_finish() -> None:
    """Leave what is imported by now, and stays, out of every garbage collection: it makes each take 0.35 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def lightning_speaks() -> None:
    """Whatever a program that was tested before has silenced, and whenever it was imported."""
    logger = logging.getLogger("pytorch_lightning")
    logger.setLevel(logging.INFO)
    logger.propagate = True


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {path} (set HSAKD_SHARED to the folder that holds {name})")
    return path


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of numbers recorded from the published code."""
    return _shared("golden")


@pytest.fixture(scope="session")
def teacher_file() -> Path:
    """Joint wrn_40_2 teacher in the published format."""
    return _shared("checkpoints/wrn_40_2_aux.pth.tar")


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory):
    """Function that unpacks an archive of real images once and returns its folder."""
    folder = tmp_path_factory.mktemp("images")

    def _unpack(archive: str) -> Path:
        source = _shared(f"data/{archive}")
        target = folder / archive.split(".")[0]
        if not target.exists():
            with tarfile.open(source) as tar:
                tar.extractall(target, filter="data")
        return target

    return _unpack


@pytest.fixture(scope="session")
def cifar_mini(unpack) -> Path:
    """CIFAR-100 cut in the canonical layout: 2,000 train and 500 test images."""
    return unpack("cifar100-mini.tar.gz") / "cifar100-mini"
