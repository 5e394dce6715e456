"""Run ONNX files on the CPU, in onnxruntime or OpenVINO. Needs neither PyTorch nor the rest of the package."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hsakd_pl.errors import UsageError, did_you_mean

TORCH = "torch"

GraphRun = Callable[[Any], Any]  # numpy array (B, 3, S, S) -> numpy array (B, N)


def import_library(library: str) -> Any:
    """Import a library of an extra; raises UsageError saying how to install it."""
    try:
        return import_module(library)
    except ImportError as error:
        if library == "openvino":
            raise UsageError(
                f"runtime openvino is not installed ({error}): pip install 'hsakd_pl[openvino]'"
            ) from error
        raise UsageError(f"ONNX needs {library} ({error}): pip install 'hsakd_pl[export]'") from error


def open_onnxruntime(path: Path, threads: int) -> GraphRun:
    """Return a function that runs a graph in onnxruntime."""
    onnxruntime = import_library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def open_openvino(path: Path, threads: int) -> GraphRun:
    """Return a function that runs a graph in OpenVINO, in float32 where the graph is.

    By default OpenVINO computes in bfloat16 on CPUs that have it, which changes logits by up to a tenth.
    """
    openvino = import_library("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "EXECUTION_MODE_HINT": "ACCURACY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda images: compiled(images)[0].copy()  # the next call overwrites the result


OPENERS: dict[str, Callable[[Path, int], GraphRun]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}
RUNTIMES = (TORCH, *OPENERS)


def check_runtime(runtime: str) -> None:
    """Raise UsageError for an unknown runtime, and for one that is not installed."""
    if runtime not in RUNTIMES:
        hint = did_you_mean(runtime, RUNTIMES)
        raise UsageError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime}: {hint}".rstrip(": "))
    if runtime != TORCH:
        import_library(runtime)


def open_graph(path: Path, runtime: str, threads: int) -> GraphRun:
    """Return a function that runs an ONNX file in a runtime of ``OPENERS``.

    Raises UsageError for a file that the runtime cannot open.
    """
    try:
        return OPENERS[runtime](path, threads)
    except UsageError:
        raise
    except Exception as error:  # of a damaged file, or of an operator that the runtime lacks
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be opened in {runtime} ({reason:.200}): export it again") from error


def version_of(library: str) -> str:
    """Return the version of an installed library."""
    try:
        return version(library)
    except PackageNotFoundError:  # a copy in a folder of its own
        return str(getattr(import_module(library), "__version__", "unknown version"))
