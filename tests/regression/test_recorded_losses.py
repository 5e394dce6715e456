"""The losses of 20 steps of every module and method are those that were recorded: see scripts/losses.py."""

import inspect
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl

import hsakd_pl
from hsakd_pl import HSAKDModule, methods


def load_script() -> ModuleType:
    """Return ``scripts/losses.py``, which makes the recording, as a module."""
    path = Path(__file__).parents[2] / "scripts" / "losses.py"
    spec = spec_from_file_location("recorded_losses", path)
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


SCRIPT = load_script()
RECORDED = SCRIPT.recorded_losses()
TOLERANCE = 1e-6  # relative, of losses in float64


@pytest.mark.parametrize("name", SCRIPT.MODULES)
def test_losses_of_20_steps_are_as_recorded(name: str) -> None:
    assert name in RECORDED, f"run scripts/losses.py --record {name}"
    losses = SCRIPT.step_losses(name, "64-true", fast=False)["losses"]
    assert len(losses) == SCRIPT.STEPS
    assert losses == pytest.approx(RECORDED[name], rel=TOLERANCE)


def test_every_public_module_is_recorded() -> None:
    public = {
        kind
        for package in (hsakd_pl, methods)
        for kind in vars(package).values()
        if inspect.isclass(kind) and issubclass(kind, pl.LightningModule)
    }
    bases = {HSAKDModule, methods.DistilledModule}
    assert public - bases == {kind for kind, _ in SCRIPT.MODULES.values()}


def test_recording_holds_no_other_modules() -> None:
    assert [*RECORDED] == [*SCRIPT.MODULES]


def test_recording_one_module_keeps_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(SCRIPT, "RECORDING", tmp_path / "losses.json")
    SCRIPT.record({"kd": [0.5, 0.25], "baseline": [2.0]})
    SCRIPT.record({"kd": [0.125]})
    assert SCRIPT.recorded_losses() == {"baseline": [2.0], "kd": [0.125]}
    assert len((tmp_path / "losses.json").read_text().splitlines()) == 4
