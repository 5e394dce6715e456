"""Write an exported student in each format, read it again and run it."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.export import Dim, ExportedProgram

from hsakd_pl.errors import UsageError
from hsakd_pl.export.student import Student, load_student
from hsakd_pl.files import replacing
from hsakd_pl.files.hub import WEIGHTS_FILE
from hsakd_pl.files.runtimes import import_library, open_onnxruntime
from hsakd_pl.networks.copies import copied
from hsakd_pl.networks.weights import describe

EXPORT_FORMATS = ("safetensors", "pt2", "onnx")
ONNX_MINIMUM_TORCH = "2.7"  # PyTorch 2.6 cannot convert batch norm from an exported program
CALIBRATION_BATCH = 32  # images that onnxruntime calibrates on at once

INT8_FILE = "model.int8.onnx"
INPUT, OUTPUT, BATCH = "input", "logits", "batch"  # names in every ONNX file of a classifier
EMBEDDING = "embedding"  # name of the output in one of an embedding network
# Operators with 8-bit kernels in onnxruntime. Without Relu, Clip and Add, each convolution would return float32, and
# networks of depthwise convolutions would be slower than in float32; norms stay exact.
QUANTISED = (
    "Conv",
    "Gemm",
    "MatMul",
    "Relu",
    "Clip",
    "Add",
    "Concat",
    "Split",
    "Reshape",
    "Transpose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
)
RANGES = "MinMax"  # onnxruntime's calibration: the smallest and the largest activation of all calibration images

Run = Callable[[Tensor], Tensor]  # images (B, 3, S, S) -> logits (B, N)


class ExportedFile(NamedTuple):
    """An exported file.

    Args:
        path: path of the file.
        megabytes: size of the file.
        difference: largest difference of a logit from PyTorch's; None if it was not measured.
        accuracy: accuracy in percent on the test images; None if it was not measured.
    """

    path: Path
    megabytes: float
    difference: float | None = None
    accuracy: float | None = None

    @property
    def cells(self) -> list[str]:
        """Name, size, difference and accuracy as cells of a table."""
        difference = ""
        if self.difference is not None:
            difference = f"{self.difference:.1e}" if self.difference else "0"
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.2f} %"
        return [self.path.name, f"{self.megabytes:.2f}", difference, accuracy]


def size_in_megabytes(path: Path) -> float:
    """Return the size of a file in megabytes."""
    return path.stat().st_size / 1e6


def check_onnx() -> None:
    """Raise UsageError if a library that ONNX export needs is missing or too old."""
    if torch.__version__ < ONNX_MINIMUM_TORCH:
        raise UsageError(
            f"formats: onnx needs PyTorch {ONNX_MINIMUM_TORCH} or newer, but {torch.__version__} is installed; "
            "update PyTorch, or leave onnx out of formats"
        )
    for library in ("onnx", "onnxscript", "onnxruntime"):
        import_library(library)


class GraphError(UsageError):
    """A network cannot be written in a format that needs its graph."""


def trace(student: Student, example: Tensor, module: nn.Module | None = None) -> ExportedProgram:
    """Trace a student for batches of any size, with an example (B, 3, S, S) of two or more images.

    Raises GraphError for a network that PyTorch cannot trace.

    Args:
        student: the student.
        example: the example.
        module: module in eval mode to trace in place of the student, which it contains.
    """
    try:
        with quiet():
            shapes = {"images": {0: Dim("batch", min=1)}}
            return torch.export.export(module or student, (example,), dynamic_shapes=shapes)
    except Exception as error:  # code of a network that cannot be traced can raise anything
        raise graph_error(student, "torch.export cannot trace it", error) from error


def graph_error(student: Student, cause: str, error: Exception | None = None) -> GraphError:
    """Return the error for a network that cannot be written in a format that needs its graph."""
    name = student.network.name or describe(student.network)
    reason = "" if error is None else f" ({type(error).__name__}: {first_words(error)})"
    return GraphError(
        f"formats: pt2 and onnx need the graph of {name}, but {cause}{reason}: choose the format safetensors alone, or "
        "change the network"
    )


def first_words(error: Exception) -> str:
    """Return the beginning of an error's text in one line, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return f"{' '.join(plain.split()) or type(error).__name__:.160}"


@contextmanager
def quiet() -> Iterator[None]:
    """Print and log nothing: PyTorch prints hundreds of lines about a network that it cannot trace."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def write(student: Student, export_format: str, folder: Path, program: ExportedProgram | None) -> tuple[Path, Run]:
    """Write a student in one format; return the file, and a function that runs what it contains.

    Args:
        student: student to write.
        export_format: ``safetensors``, whose files are in the folder already, ``pt2`` or ``onnx``.
        folder: folder to write into.
        program: traced student; None for ``safetensors``.
    """
    if program is None:
        return folder / WEIGHTS_FILE, load_student(folder, student.network.name or copied(student.network))
    path = folder / f"model.{export_format}"
    if export_format == "pt2":
        content = io.BytesIO()  # PyTorch itself does not survive a full disk
        torch.export.save(program, content)
        with replacing(path, "wb") as file:
            file.write(content.getbuffer())
        return path, torch.export.load(path).module()
    write_onnx(student, path, program)
    try:
        return path, onnx_runner(path)
    except Exception as error:  # onnxruntime lacks operations for some types
        raise graph_error(student, "onnxruntime cannot run its graph", error) from error


def write_onnx(student: Student, path: Path, program: ExportedProgram) -> None:
    """Write a graph ``input`` (batch, C, S, S) -> ``logits`` or ``embedding`` (batch, N) with its weights.

    Class names and image size are metadata. Raises GraphError for a graph that is not valid.
    """
    onnx_program = as_onnx(student, program)
    metadata = onnx_program.model.metadata_props
    if not student.embeds:
        metadata["class_names"] = json.dumps(student.class_names, ensure_ascii=False)
    metadata["image_size"] = str(student.image_size)
    model = onnx_program.model_proto
    _name_batch(model.graph)
    with replacing(path, "wb") as file:
        file.write(model.SerializeToString())
    checker = import_library("onnx").checker
    try:
        checker.check_model(str(path), full_check=True)
    except Exception as error:  # of a type that an operation does not have
        raise graph_error(student, "onnx does not accept its graph", error) from error


def as_onnx(student: Student, program: ExportedProgram) -> Any:
    """Return a traced student as an ``ONNXProgram``, in which ``input`` and the first output have their names.

    Raises GraphError for a graph that cannot be converted.
    """
    try:
        with quiet():
            return torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[EMBEDDING if student.embeds else OUTPUT],
            )
    except Exception as error:  # of an operation that ONNX lacks, for example
        raise graph_error(student, "its graph cannot be converted to ONNX", error) from error


def _name_batch(graph: Any) -> None:
    """Rename the dimension of the batch, which PyTorch calls ``s34``, in all shapes of a graph that depend on it."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    word = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if symbol and dimension.HasField("dim_param"):  # an expression such as 4*s34, too
                dimension.dim_param = word.sub(BATCH, dimension.dim_param)


def onnx_runner(path: Path) -> Run:
    """Return a function that runs a graph in onnxruntime on the CPU, with as many threads as PyTorch has."""
    run = open_onnxruntime(path, torch.get_num_threads())
    return lambda images: torch.from_numpy(run(images.numpy()))


class CalibrationReader:
    """Pass batches of inputs (B, 3, S, S) to onnxruntime, one after the other."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input of the graph, or None at the end."""
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


class Grid(NamedTuple):
    """Hold the 8-bit grid of an activation, whose values are ``scale * (q - zero_point)`` for q from 0 to 255."""

    scale: float
    zero_point: int


def quantise(path: Path, calibration: Tensor | None, grids: Mapping[str, Grid] | None = None) -> Path:
    """Write ``model.int8.onnx`` next to a graph, with weights of 8 bits, and return its path.

    With ``calibration``, weights are signed with a scale per output channel, and activations unsigned with one scale
    per tensor (QuantizeLinear and DequantizeLinear around each operator of ``QUANTISED``).

    Args:
        path: the graph.
        calibration: inputs (B, 3, S, S) of the graph that determine the ranges of activations; None: each image
            determines its own, which makes the file small but no faster.
        grids: grids of activations by name, which replace those that ``calibration`` would determine.
    """
    int8_path = path.with_name(INT8_FILE)
    try:
        _quantise(path, int8_path, calibration, grids or {})
    except Exception as error:  # onnxruntime can raise anything, also where the disk is full
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"int8: onnxruntime cannot write {int8_path.name} ({reason}): omit int8") from error
    return int8_path


def _quantise(path: Path, int8_path: Path, calibration: Tensor | None, grids: Mapping[str, Grid]) -> None:
    onnx = import_library("onnx")
    quantization = import_library("onnxruntime.quantization")
    shape_inference = import_library("onnxruntime.quantization.shape_inference")
    prepared = path.with_suffix(".prepared")
    shape_inference.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)  # folds norms
    model = onnx.load(str(prepared))
    del model.graph.value_info[:]  # inferred shapes; quantising transposes some weights and infers the shapes again
    onnx.save(model, str(prepared))
    unsigned = quantization.QuantType.QUInt8
    if calibration is None:
        # older versions of onnxruntime only run convolutions with unsigned weights
        quantization.quantize_dynamic(str(prepared), str(int8_path), weight_type=unsigned)
    else:
        quantization.quantize_static(
            str(prepared),
            str(int8_path),
            CalibrationReader(calibration.split(CALIBRATION_BATCH)),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=unsigned,  # with signed ones, onnxruntime fuses no additions
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            calibrate_method=getattr(quantization.CalibrationMethod, RANGES),
            op_types_to_quantize=[*QUANTISED],
            extra_options={"TensorQuantOverrides": {name: [_as_override(grid)] for name, grid in grids.items()}},
        )
    prepared.unlink()


def _as_override(grid: Grid) -> dict[str, Any]:
    return {"scale": np.array(grid.scale, np.float32), "zero_point": np.array(grid.zero_point, np.uint8)}
