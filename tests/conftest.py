"""Provide real images and a trained teacher where they exist, otherwise generated stand-ins."""

import gc
import logging
import os
import tarfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores

if find_spec("pl_bolts"):
    import_module("hsakd_pl.integrations.bolts")  # pytest-xdist's controller unpickles its warning classes

SHARED = Path(os.environ.get("HSAKD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_report_header() -> str | None:
    """Say whether real images are used."""
    return None if SHARED.exists() else f"no {SHARED}: images and teacher are generated stand-ins"


def pytest_configure(config: pytest.Config) -> None:
    """Ignore Lightning's advice for production runs in this process if it runs the tests: this imports Lightning."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        advice = "ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"
        config.addinivalue_line("filterwarnings", advice)


def pytest_collection_finish() -> None:
    """Exclude everything imported so far from garbage collections, each of which it would make 0.35 s longer."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def lightning_speaks() -> None:
    """Undo what a tested program may have silenced in Lightning's logger."""
    logger = logging.getLogger("pytorch_lightning")
    logger.setLevel(logging.INFO)
    logger.propagate = True


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the curves of similar runs once: drawing takes a sixth of the time of a short run."""
    monkeypatch.setattr("hsakd_pl.records.history.save_curves", import_module("small").save_similar_curves)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a joint wrn_40_2 teacher in the published format: the trained one, or one of random weights."""
    path = SHARED / "checkpoints/wrn_40_2_aux.pth.tar"
    if not path.exists():
        path = tmp_path_factory.mktemp("weights") / path.name
        import_module("stand_ins").teacher(path)
    return path


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that unpacks an archive of real images, or generates its stand-in, and returns the folder."""
    folder = tmp_path_factory.mktemp("images")

    def _unpack(archive: str) -> Path:
        source = SHARED / "data" / archive
        target = folder / archive.split(".")[0]
        if target.exists():
            return target
        if source.exists():
            with tarfile.open(source) as tar:
                tar.extractall(target, filter="data")
        else:
            import_module("stand_ins").ARCHIVES[archive](target)
        return target

    return _unpack


@pytest.fixture(scope="session")
def cifar_mini(unpack: Callable[[str], Path]) -> Path:
    """Return a cut of CIFAR-100 in the canonical layout: 2,000 training and 500 test images."""
    return unpack("cifar100-mini.tar.gz") / "cifar100-mini"
