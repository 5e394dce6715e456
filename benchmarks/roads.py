"""Run an exported student in one runtime: the lines that docs/runtimes.md shows, as a process of its own.

Usage: python roads.py ROAD FOLDER IMAGES THREADS SECONDS BATCH... LOGITS. Needs neither hsakd_pl nor, unless the road
is PyTorch's, PyTorch: two runtimes in one process slow each other down.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy

Run = Callable[[Any], Any]  # float32 (B, 3, S, S) -> logits (B, N)


def in_onnxruntime(path: Path, threads: int, batch: int) -> Run:
    """Run a graph in onnxruntime."""
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"input": images})[0]


def in_openvino(path: Path, threads: int, batch: int, accurate: bool = True, fixed: bool = False) -> Run:
    """Run a graph in OpenVINO; unless it is to be ``accurate``, in bfloat16 where the CPU has it."""
    openvino = import_module("openvino")
    model = openvino.Core().read_model(str(path))
    if fixed:
        model.reshape([batch, *[dimension.get_length() for dimension in list(model.input(0).partial_shape)[1:]]])
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if accurate:
        settings["EXECUTION_MODE_HINT"] = "ACCURACY"
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda images: compiled(images)[0].copy()


def in_pytorch(path: Path, threads: int, batch: int) -> Run:
    """Run model.pt2 in PyTorch."""
    import torch

    torch.set_num_threads(threads)
    program = torch.export.load(path).module()
    return lambda images: program(torch.from_numpy(images)).detach().numpy()


def in_aot_inductor(path: Path, threads: int, batch: int) -> Run:
    """Run model.pt2 compiled by AOTInductor."""
    import torch

    torch.set_num_threads(threads)
    package = path.with_name("aot.pt2")
    if not package.exists():  # compiling takes a minute or two
        torch._inductor.aoti_compile_and_package(torch.export.load(path), package_path=str(package))
    program = torch._inductor.aoti_load_package(str(package))
    return lambda images: program(torch.from_numpy(images)).numpy()


def in_tract(path: Path, threads: int, batch: int) -> Run:
    """Run a graph in tract, which is slow unless the symbol of the batch is set."""
    tract = import_module("tract")
    model = tract.onnx().load(str(path)).into_model()
    model.transform(tract.SetSymbols({"batch": batch}))
    runnable = model.into_runnable()
    return lambda images: runnable.run([images])[0].to_numpy()


def in_ncnn(path: Path, threads: int, batch: int) -> Run:
    """Run a graph in ncnn, one image after the other, with weights in float32."""
    ncnn = import_module("ncnn")
    folder = path.parent / "ncnn"
    if not folder.exists():
        folder.mkdir()
        (folder / path.name).write_bytes(path.read_bytes())
        side = json.loads((path.parent / "config.json").read_text())["image_size"]
        pnnx = find_spec("pnnx")
        assert pnnx is not None and pnnx.origin is not None, "ncnn needs pnnx: pip install pnnx"
        command = [str(Path(pnnx.origin).with_name("pnnx")), path.name, f"inputshape=[1,3,{side},{side}]f32", "fp16=0"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_storage = False  # otherwise the linear layer's weights are rounded
    net.load_param(str(folder / "model.ncnn.param"))
    net.load_model(str(folder / "model.ncnn.bin"))

    def one(image: Any) -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image).clone())
        return numpy.array(extractor.extract("out0")[1])

    return lambda images: numpy.stack([one(image) for image in images])


def _road(opener: Callable[..., Run], file: str, library: str, **options: bool) -> tuple[str, str, Callable[..., Run]]:
    return file, library, lambda path, threads, batch: opener(path, threads, batch, **options)


# By name: the file, the library, and what opens the file for batches of one size
ROADS = {
    "onnxruntime fp32": _road(in_onnxruntime, "model.onnx", "onnxruntime"),
    "onnxruntime int8": _road(in_onnxruntime, "model.int8.onnx", "onnxruntime"),
    "OpenVINO f32": _road(in_openvino, "model.onnx", "openvino"),
    "OpenVINO f32, fixed batch": _road(in_openvino, "model.onnx", "openvino", fixed=True),
    "OpenVINO default": _road(in_openvino, "model.onnx", "openvino", accurate=False),
    "OpenVINO default, fixed batch": _road(in_openvino, "model.onnx", "openvino", accurate=False, fixed=True),
    "OpenVINO int8": _road(in_openvino, "model.int8.onnx", "openvino"),
    "OpenVINO int8, rest default, fixed batch": _road(
        in_openvino, "model.int8.onnx", "openvino", accurate=False, fixed=True
    ),
    "PyTorch pt2": _road(in_pytorch, "model.pt2", "torch"),
    "AOTInductor": _road(in_aot_inductor, "model.pt2", "torch"),
    "tract": _road(in_tract, "model.onnx", "tract"),
    "ncnn": _road(in_ncnn, "model.onnx", "ncnn"),
}
REFERENCE = next(iter(ROADS))


def main(road: str, folder: str, images_file: str, threads: str, seconds: str, *rest: str) -> None:
    """Measure a road, write its logits, and print images per second by batch size as JSON."""
    *batches, logits_file = rest
    file, library, open_file = ROADS[road]
    images = numpy.load(images_file)
    speeds = {}
    for batch in map(int, batches):
        run = open_file(Path(folder, file), int(threads), batch)
        inputs = numpy.ascontiguousarray(images[:batch])
        run(inputs)
        run(inputs)
        calls = 0
        start = time.perf_counter()
        while calls == 0 or time.perf_counter() - start < float(seconds):
            run(inputs)
            calls += 1
        speeds[str(batch)] = calls * batch / (time.perf_counter() - start)
    if logits_file != "-":  # of whole batches of the last size
        whole = len(images) // batch * batch
        numpy.save(logits_file, numpy.concatenate([run(part) for part in numpy.split(images[:whole], whole // batch)]))
    print(json.dumps({"images_per_second": speeds, "version": version(library)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
