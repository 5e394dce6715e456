"""The recorded cases of the newer methods: one recording is kept in ``data``, the others are read where they exist."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from . import inputs
from .recordings import DATA, GOLDEN, Recorded, deviation, read, recorded_arrays, summary_of

RECORDINGS = ("methods2_0", "methods2_1")
LOSS, PART, GRADIENT = 1e-12, 1e-12, 1e-10  # relative to the largest entry, in float64
LOSS_FLOAT32, GRADIENT_FLOAT32 = 1e-5, 1e-6


class Case:
    """Inputs, options and results of one case in one recording.

    Args:
        name: name of the recording.
        case: name of the case.
        dtype: type of the inputs; the results are those in float64.
    """

    def __init__(self, name: str, case: str, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        load = self._kept if (DATA / f"{name}.json").exists() else self._recorded
        self.options, self.inputs, self.results = load(name, case)
        for key, value in self.inputs.items():
            if value.is_floating_point():
                self.inputs[key] = value.to(dtype, copy=True).requires_grad_()

    def _kept(self, name: str, case: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        recording = read(f"{name}.json")
        record = recording[case]
        values = {key: inputs.from_integers(recording["inputs"][source]) for key, source in record["inputs"].items()}
        summaries = {key: entry for key, entry in record["results"].items() if isinstance(entry, dict)}
        arrays = recorded_arrays(summaries, f"methods2/{name}.npz", f"{case}/")
        return record["options"], values, record["results"] | arrays

    def _recorded(self, name: str, case: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        path = GOLDEN / "methods2" / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"needs {path}, which is not published")
        recording = np.load(path)
        options = json.loads(path.with_suffix(".json").read_text())[case]
        arrays = {key.removeprefix(f"{case}/"): recording[key] for key in recording if key.startswith(f"{case}/")}
        values = {key[3:]: torch.from_numpy(array) for key, array in arrays.items() if key.startswith("in/")}
        results = {key: Recorded(summary_of(array), array) for key, array in arrays.items() if key[:3] != "in/"}
        return options, values, results

    def compare(self, loss: Tensor, tolerances: dict[str, float] | None = None, **learnt: Tensor) -> None:
        """Compare a loss and its gradients; no input may receive a gradient that was not recorded.

        Args:
            loss: the loss.
            tolerances: tolerances of gradients in float32 that differ from the usual one.
            learnt: parameters by the names of their gradients, if they are not inputs.
        """
        exact = self.dtype == torch.float64
        assert deviation(loss, self.results["loss"]) < (LOSS if exact else LOSS_FLOAT32)
        loss.backward()
        gradients = {key[5:]: value for key, value in self.results.items() if key.startswith("grad/")}
        for key, gradient in gradients.items():
            tolerance = GRADIENT if exact else (tolerances or {}).get(key, GRADIENT_FLOAT32)
            assert deviation((self.inputs | learnt)[key].grad, gradient) < tolerance, key
        assert all(value.grad is None for key, value in self.inputs.items() if key not in gradients)

    def compare_parts(self, **parts: Any) -> None:
        """Compare intermediate values with the recorded ones."""
        tolerance = PART if self.dtype == torch.float64 else LOSS_FLOAT32
        for name, part in parts.items():
            assert deviation(part, self.results[f"part/{name}"]) < tolerance, name
