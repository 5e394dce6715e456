"""Measure exported graphs on this machine: accuracy, agreement with the float graph, and images per second."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hsakd_pl.cpu.kinds import find_cpu
from hsakd_pl.data import Description, ImageDataModule
from hsakd_pl.errors import counted
from hsakd_pl.export.formats import onnx_runner, size_in_megabytes
from hsakd_pl.export.pictures import as_input, evenly_spaced
from hsakd_pl.files.runtimes import open_onnxruntime, version_of

MEASURED_IMAGES = 10_000  # most test images that are classified: as many as CIFAR-100 has
BATCH_SIZES = (1, 32)
ROUNDS = 5  # turns of each graph; the median counts
SECONDS = 0.1  # of calls, at least, per graph, batch size and round


class Speed(NamedTuple):
    """The accuracy, the agreement with the first graph, both in [0, 1], and the images per second of a graph.

    Args:
        file: name of the graph's file.
        megabytes: size of the file.
        batch_size: images per call.
        accuracy: fraction of the test images whose class is right.
        agreement: fraction of the test images for which the first graph has the same class.
        images_per_second: median over the rounds.
        times_as_fast: as a multiple of the first graph's, at the same batch size.
    """

    file: str
    megabytes: float
    batch_size: int
    accuracy: float
    agreement: float
    images_per_second: float
    times_as_fast: float

    @property
    def cells(self) -> dict[str, str]:
        """The row of a table."""
        return {
            "file": self.file,
            "batch": str(self.batch_size),
            "MB": f"{self.megabytes:.2f}",
            "accuracy %": f"{100 * self.accuracy:.2f}",
            "agreement %": f"{100 * self.agreement:.2f}",
            "images/s": f"{self.images_per_second:,.0f}",
            "times": f"{self.times_as_fast:.2f}",
        }


class Measurement(NamedTuple):
    """Accuracy and speed of exported graphs, and the conditions of the measurement.

    Args:
        rows: one row per graph and batch size, the float graph first.
        images: number of test images that were classified.
        split_images: number of images in the test split.
        data: fingerprint of the test split, None if it is not known.
        threads: threads of the runtime.
        cpu: model and kind of the processor.
        runtime: library and its version.
    """

    rows: list[Speed]
    images: int
    split_images: int
    data: str | None
    threads: int
    cpu: str
    runtime: str

    @property
    def conditions(self) -> str:
        """Description of the images, the runtime and the processor."""
        images = counted(self.images, "test image")
        if self.images < self.split_images:
            images = f"{self.images:,} of {counted(self.split_images, 'test image')}"
        return f"{images}; {self.runtime}, {counted(self.threads, 'thread')}, {self.cpu}"

    def accuracy(self, file: str) -> float | None:
        """Return the accuracy in percent of a file, None if it was not measured."""
        return next((100 * row.accuracy for row in self.rows if row.file == file), None)

    def slower(self) -> list[Speed]:
        """Return the rows of graphs that are slower than the first one."""
        return [row for row in self.rows if row.times_as_fast < 1]

    def saved(self) -> dict[str, Any]:
        """Return plain data for ``export.json``."""
        return {**self._asdict(), "rows": [rounded(row._asdict()) for row in self.rows]}


def rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    """Round floating-point numbers to four digits after the point."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in numbers.items()}


def measure(graphs: Sequence[Path], description: Description, input: str, data: ImageDataModule) -> Measurement:
    """Measure graphs on the test split, at most ``MEASURED_IMAGES`` evenly spaced ones, and with batches of it.

    Args:
        graphs: files; the others are compared with the first.
        description: description of the student's data.
        input: input of the graphs, ``float`` or ``uint8``.
        data: data module with a test split; raises UsageError if it is missing or of other classes.
    """
    runs = [onnx_runner(graph) for graph in graphs]
    correct = [0 for _ in graphs]
    agreeing = [0 for _ in graphs]
    count = 0
    examples = torch.empty(0)
    for images, labels in evenly_spaced(data, description, MEASURED_IMAGES):
        inputs = as_input(images, input)
        if count == 0:
            examples = inputs
        count += len(labels)
        classes = [run(inputs).argmax(1) for run in runs]
        for index, predicted in enumerate(classes):
            correct[index] += int(predicted.eq(labels).sum())
            agreeing[index] += int(predicted.eq(classes[0]).sum())
    del runs  # whose threads would wait actively beside those that are timed
    threads = torch.get_num_threads()
    speeds = _images_per_second(graphs, examples, threads)
    rows = [
        Speed(
            graph.name,
            size_in_megabytes(graph),
            batch_size,
            correct[index] / count,
            agreeing[index] / count,
            speeds[index, batch_size],
            speeds[index, batch_size] / speeds[0, batch_size],
        )
        for index, graph in enumerate(graphs)
        for batch_size in BATCH_SIZES
    ]
    cpu = find_cpu()
    return Measurement(
        rows,
        count,
        len(data.splits["test"].targets),
        data.fingerprints.get("test"),
        threads,
        f"{cpu.model}, {cpu.kind.name}",
        f"onnxruntime {version_of('onnxruntime')}",
    )


def _images_per_second(graphs: Sequence[Path], examples: Tensor, threads: int) -> dict[tuple[int, int], float]:
    """Return the median speed by number of the graph and batch size; the graphs take turns, one open at a time.

    Two sessions of onnxruntime in one process slow each other down, because their waiting threads spin.
    """
    speeds: dict[tuple[int, int], list[float]] = {}
    for _ in range(ROUNDS):
        for index, graph in enumerate(graphs):
            run = open_onnxruntime(graph, threads)
            for batch_size in BATCH_SIZES:
                repeated = examples.repeat(-(-batch_size // len(examples)), 1, 1, 1)
                images = repeated[:batch_size].contiguous().numpy()
                run(images)  # the first call allocates memory
                calls = 0
                start = time.perf_counter()
                while calls == 0 or time.perf_counter() - start < SECONDS:
                    run(images)
                    calls += 1
                speed = calls * batch_size / (time.perf_counter() - start)
                speeds.setdefault((index, batch_size), []).append(speed)
            del run
    return {key: median(values) for key, values in speeds.items()}
