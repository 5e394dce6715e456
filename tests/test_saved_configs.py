"""Test that config.yaml reads back as the configuration of the run, whatever values its options have."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from small import run

from hsakd_pl.cli.main import main

LIGHTNING = "pytorch_lightning.callbacks"


class Default(pl.Callback):
    """Take a function without an import path by default."""

    def __init__(self, function: Callable[[int], int] = lambda number: number, names: tuple[str, ...] = ("a",)) -> None:
        assert callable(function)


def greet(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Do nothing."""


CALLBACKS: dict[str, dict[str, Any]] = {
    f"{LIGHTNING}.Timer": {"duration": {"hours": 1}},  # whose interval is a member of an enumeration
    f"{LIGHTNING}.ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.5},  # text or a function
    f"{LIGHTNING}.LambdaCallback": {"on_fit_end": f"{__name__}.greet"},
    f"{__name__}.Default": {},
    f"{LIGHTNING}.ThroughputMonitor": {"batch_size_fn": "builtins.len"},
}


def test_saved_configuration_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    callbacks = [{"class_path": path, "init_args": options} for path, options in CALLBACKS.items()]
    limits = {"limit_train_batches": 1, "limit_val_batches": 0, "log_every_n_steps": None}
    folder = run("fit", model={"init_args": {"fast": False}}, trainer={"callbacks": callbacks, **limits})
    first = (folder / "config.yaml").read_text()
    saved = {entry["class_path"]: entry.get("init_args", {}) for entry in yaml.safe_load(first)["trainer"]["callbacks"]}
    for path, options in CALLBACKS.items():
        assert {name: saved[path].get(name) for name in options} == options
    assert saved[f"{LIGHTNING}.Timer"]["interval"] == "step"
    assert "function" not in saved[f"{__name__}.Default"]
    main(["fit", "--config", str(folder / "config.yaml"), "--trainer.default_root_dir", "again"])
    again = yaml.safe_load(Path("again/config.yaml").read_text())
    assert again["trainer"]["callbacks"] == yaml.safe_load(first)["trainer"]["callbacks"]
