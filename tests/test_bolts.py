"""Test lightning-bolts, if installed (pip install --no-deps lightning-bolts==0.7.0), and the message otherwise."""

import math
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from small import error_of, history, run
from torchvision.datasets import FakeData

from hsakd_pl.errors import UsageError

OVERLAY = Path(__file__).parents[1] / "configs/trainer/bolts.yaml"
INTEGRATION = "hsakd_pl.integrations.bolts"
needs_bolts = pytest.mark.skipif(
    find_spec("pl_bolts") is None, reason="needs pip install --no-deps lightning-bolts==0.7.0"
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])


@pytest.fixture
def without_bolts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the import of bolts fail."""
    for name in [name for name in sys.modules if name.startswith("pl_bolts") or name == INTEGRATION]:
        monkeypatch.delitem(sys.modules, name)
    find: Callable[..., Any] = PathFinder.find_spec
    monkeypatch.setattr(PathFinder, "find_spec", lambda name, *at: None if name == "pl_bolts" else find(name, *at))


@pytest.mark.usefixtures("without_bolts")
def test_missing_bolts_raises_with_install_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"pip install --no-deps lightning-bolts==0\.7\.0"):
        import_module(INTEGRATION)
    message = error_of(capsys, lambda: run("fit", "--config", str(OVERLAY)))
    assert "pip install --no-deps lightning-bolts==0.7.0" in message


@needs_bolts
@pytest.mark.parametrize("package", ["callbacks", "datamodules", "datasets", "losses", "optimizers", "transforms"])
def test_bolts_subpackages_import(package: str) -> None:
    import_module(INTEGRATION)
    found = import_module(f"pl_bolts.{package}")
    modules = [module.name for module in pkgutil.walk_packages(found.__path__, f"{found.__name__}.")]
    assert len([import_module(name) for name in modules]) > 1


@needs_bolts
def test_bolts_scheduler_and_callback_train(caplog: pytest.LogCaptureFixture) -> None:
    length = ("--model.init_args.lr_scheduler.init_args.max_epochs", "8")
    limits = {"max_epochs": 8, "limit_train_batches": 1, "limit_val_batches": 1}
    folder = run("fit", "--config", str(OVERLAY), *length, model={"init_args": {"lr": 0.05}}, trainer=limits)
    rates = [row["lr"] for row in history(folder)]
    cosine = [0.05 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, *cosine])
    assert "val/loss│val/acc" in caplog.text


class FakeCIFAR10(FakeData):
    """Provide random images with the arguments of torchvision's CIFAR10."""

    def __init__(self, root: str, train: bool, transform: Any = None, download: bool = False) -> None:
        super().__init__(20, (3, 32, 32), 10, transform)


@needs_bolts
def test_bolts_data_modules_and_transforms_train(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module(INTEGRATION)
    monkeypatch.setattr("pl_bolts.datamodules.CIFAR10DataModule.dataset_cls", FakeCIFAR10)
    options = {"data_dir": ".", "batch_size": 4, "normalize": True, "pin_memory": False}
    options["train_transforms"] = {"class_path": "torchvision.transforms.ToTensor"}
    data = {"class_path": "pl_bolts.datamodules.CIFAR10DataModule", "init_args": options}
    folder = run("fit", module="TeacherModule", data=data)
    assert (folder / "last.ckpt").is_file()
