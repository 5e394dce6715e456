"""The files of an exported student: written, read again, and run."""

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from hsakd_pl.errors import UsageError
from hsakd_pl.export.student import WEIGHTS, Student, load_student

FORMATS = ("safetensors", "pt2", "onnx")
ONNX_MINIMUM_TORCH = "2.7"  # PyTorch 2.6 cannot convert batch norm from an exported program
Run = Callable[[Tensor], Tensor]  # images (B, 3, S, S) -> logits (B, N)


class ExportedFile(NamedTuple):
    """A file: its size, largest difference of a logit to PyTorch, and accuracy in percent on the test split.

    None where it was not measured.
    """

    path: Path
    megabytes: float
    difference: float | None = None
    accuracy: float | None = None

    @property
    def cells(self) -> list[str]:
        """Write the file as a row of a table."""
        difference = "" if self.difference is None else f"{self.difference:.1e}" if self.difference else "0"
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.2f} %"
        return [self.path.name, f"{self.megabytes:.2f}", difference, accuracy]


def optional(library: str) -> Any:
    """Import a library of the extra ``export``; raises UsageError that says how to install it."""
    try:
        return import_module(library)
    except ImportError as error:
        raise UsageError(f"ONNX needs {library} ({error}): pip install 'hsakd_pl[export]'") from error


def check_onnx() -> None:
    """Raise UsageError if a library that ONNX export needs is missing or too old."""
    if torch.__version__ < ONNX_MINIMUM_TORCH:
        raise UsageError(
            f"formats: onnx needs PyTorch {ONNX_MINIMUM_TORCH} or newer, but {torch.__version__} is installed; "
            "update PyTorch, or leave onnx out of formats"
        )
    for library in ("onnx", "onnxscript", "onnxruntime"):
        optional(library)


def trace(student: Student, example: Tensor) -> ExportedProgram:
    """Trace a student for batches of any size, of images like those of the example (B, 3, S, S), two or more."""
    return torch.export.export(student, (example,), dynamic_shapes={"images": {0: Dim("batch", min=1)}})


def write(student: Student, form: str, folder: Path, program: ExportedProgram | None) -> tuple[Path, Run]:
    """Write a format into a folder, and give the file with what runs it, read from the disk again.

    ``program`` is the traced student. What ``safetensors`` needs is there already.
    """
    path = folder / (WEIGHTS if form == "safetensors" else f"model.{form}")
    if program is None:
        return path, load_student(folder, student.network.name or deepcopy(student.network))
    if form == "pt2":
        torch.export.save(program, path)
        return path, torch.export.load(path).module()
    write_onnx(student, path, program)
    return path, onnx_runner(path)


def write_onnx(student: Student, path: Path, program: ExportedProgram) -> None:
    """Write a graph ``input`` -> ``logits`` whose metadata hold the class names and the size, weights inside."""
    names = {"input_names": ["input"], "output_names": ["logits"]}
    found: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
    classes = json.dumps(student.class_names, ensure_ascii=False)
    found.model.metadata_props.update({"class_names": classes, "image_size": str(student.image_size)})
    found.save(str(path), external_data=False)
    optional("onnx").checker.check_model(str(path), full_check=True)


def onnx_runner(path: Path) -> Run:
    """Open a graph in onnxruntime, on the CPU."""
    session = optional("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"input": images.numpy()})[0])


class Calibration:
    """What onnxruntime asks for one batch after the other, until there is none."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Give the next input of the graph."""
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch.numpy()}


def quantise(path: Path, calibration: Tensor | None) -> Path:
    """Write ``model.int8.onnx`` beside a graph: weights in 8 bits, activations in ranges that each image decides.

    With ``calibration`` (B, 3, S, S), inputs of the graph, these decide the ranges once and for all.
    """
    quantization, shapes = (optional(f"onnxruntime.quantization{part}") for part in ("", ".shape_inference"))
    prepared, small = path.with_suffix(".prepared"), path.with_name("model.int8.onnx")
    shapes.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)  # joins norms with convolutions
    model = optional("onnx").load(str(prepared))
    del model.graph.value_info[:]  # shapes, which quantising finds again; of weights that it transposes they go wrong
    optional("onnx").save(model, str(prepared))
    unsigned, signed = quantization.QuantType.QUInt8, quantization.QuantType.QInt8
    if calibration is None:
        quantization.quantize_dynamic(str(prepared), str(small), weight_type=unsigned)  # older runtimes have no other
    else:
        kinds = {"activation_type": unsigned, "weight_type": signed, "per_channel": True}
        kinds["op_types_to_quantize"] = ["Conv", "Gemm", "MatMul"]  # all that has large weights; norms stay exact
        quantization.quantize_static(str(prepared), str(small), Calibration(calibration.split(32)), **kinds)
    prepared.unlink()
    return small
