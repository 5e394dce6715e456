"""Measure exported students in each runtime that is installed, as multiples of model.onnx in onnxruntime.

Each road (runtime, file and precision) runs in a process of its own, one at a time and in turns, with the same threads.
Roads whose library is missing are left out; those that fail are recorded with the reason. Networks without a checkpoint
have random weights, whose accuracy means nothing and is left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch

from benchmarks.machine import processor
from benchmarks.results import path_of
from benchmarks.roads import REFERENCE, ROADS
from benchmarks.trees import CHECKOUT, checkout
from benchmarks.turns import in_turns
from hsakd_pl import CIFAR100DataModule, create_network, export_student
from hsakd_pl.data import ImageDataModule
from hsakd_pl.errors import UsageError
from hsakd_pl.export.pictures import as_input, evenly_spaced, first_images
from hsakd_pl.files import local_path, replacing

NETWORKS = ("wrn_16_2", "resnet8x4", "mobilenetv2", "shufflenetv2", "timm:lcnet_050")
BATCHES = (1, 64)
IMAGES = 1_984  # test images that are classified: 31 batches of 64
RESULTS = CHECKOUT / "benchmarks" / "results" / "exports"
DOCUMENT = CHECKOUT / "docs" / "runtimes.md"
MARKS = ("<!-- roads: python -m benchmarks exports --render -->", "<!-- end of roads -->")
FORMATS = ("safetensors", "pt2", "onnx")
FAILED = "error"
Results = dict[str, dict[str, Any]]  # by network, by road, and "environment"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        "python -m benchmarks exports", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    options.add_argument("--roads", nargs="+", default=[*ROADS], choices=ROADS, metavar="ROAD", help=", ".join(ROADS))
    options.add_argument(
        "--checkpoints", nargs="+", default=[], metavar="NAME=FILE", help="trained networks; others are random"
    )
    options.add_argument("--root", type=Path, default=Path("data"), help="folder of CIFAR-100")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0, help="of calls per road, batch size and round")
    options.add_argument("--images", type=int, default=IMAGES, help="test images, in whole batches")
    options.add_argument("--again", action="store_true", help="measure also what is stored already")
    options.add_argument("--render", action="store_true", help="only write the tables of docs/runtimes.md")
    return options


def file_of(device: str) -> Path:
    """Return the file of a device's results."""
    return RESULTS / path_of(device).name


def stored_results(path: Path) -> Results:
    """Return the stored results of a device, or an empty dictionary if there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def missing_roads(stored: dict[str, Any], roads: Sequence[str]) -> list[str]:
    """Return the roads that are not stored for a network, after the reference; an empty list if there are none."""
    missing = [road for road in roads if road not in stored]
    return [REFERENCE, *(road for road in missing if road != REFERENCE)] if missing else []


def installed(road: str) -> bool:
    """Return whether the library of a road is there."""
    return find_spec(ROADS[road][1]) is not None


def with_statistics(network: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """Give the norms of a random network the statistics of images (B, 3, S, S), so that its logits have a scale."""
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    network.train()
    with torch.no_grad():
        network(images)
    return network.eval()


def export(name: str, checkpoint: str | None, data: ImageDataModule, folder: Path) -> None:
    """Export a trained network, or a random one, with the default int8."""
    source = Path(checkpoint) if checkpoint else folder.with_suffix(".pth")
    if checkpoint is None:
        torch.manual_seed(0)
        network = create_network(name, len(data.description.class_names), branches=False)
        pixels = as_input(first_images(data, data.description, "train", 256), "float")
        mean, std = torch.tensor([data.mean, data.std])[:, :, None, None]
        torch.save(with_statistics(network, (pixels - mean) / std).state_dict(), source)
    export_student(
        source,
        folder,
        FORMATS,
        network=name,
        description=data.description,
        int8="static",
        data=data,
        measure=False,
    )


def run_road(road: str, folder: Path, images: Path, options: argparse.Namespace, logits: str) -> dict[str, Any]:
    """Measure a road in a process of its own; return its numbers, or the reason why it fails."""
    arguments = [road, folder, images, options.threads, options.seconds, *BATCHES, logits]
    command = [sys.executable, CHECKOUT / "benchmarks" / "roads.py", *arguments]
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if finished.returncode:
        return {FAILED: (finished.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(finished.stdout.splitlines()[-1])


def measure(
    folder: Path, roads: Sequence[str], images: torch.Tensor, labels: torch.Tensor | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the numbers of each road for an export.

    Args:
        folder: folder of the export.
        roads: roads, the reference first.
        images: test images (B, 3, S, S) in [0, 1].
        labels: their labels (B,), None for a random network.
        options: threads, rounds and seconds.
    """
    images_file = folder / "images.npy"
    numpy.save(images_file, images.numpy())
    numbers: dict[str, dict[str, Any]] = {}
    speeds: dict[str, list[dict[str, float]]] = {road: [] for road in roads}

    def take(road: str) -> None:
        if FAILED in numbers.get(road, {}):
            return
        is_first = not speeds[road]
        found = run_road(road, folder, images_file, options, str(folder / "logits.npy") if is_first else "-")
        if FAILED in found:
            numbers[road] = found
            print(f"  {road}: {found[FAILED]}", flush=True)
            return
        if is_first:
            logits = numpy.load(folder / "logits.npy")
            numbers[road] = compared(logits, reference, labels) | {"version": found["version"]}
            numbers[road]["megabytes"] = round((folder / ROADS[road][0]).stat().st_size / 1e6, 2)
        speeds[road].append(found["images_per_second"])

    reference = logits_of(folder, images)
    in_turns(options.rounds, roads, take)
    first = speeds[REFERENCE]
    for road in roads:
        if FAILED in numbers[road]:
            continue
        for batch in map(str, BATCHES):
            ratios = [speed[batch] / before[batch] for speed, before in zip(speeds[road], first, strict=True)]
            numbers[road][f"batch {batch}"] = {
                "times": round(statistics.median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
                "images_per_second": round(statistics.median(speed[batch] for speed in speeds[road]), 1),
            }
    return numbers


def logits_of(folder: Path, images: torch.Tensor) -> Any:
    """Return the logits of PyTorch, eagerly, with which the roads are compared."""
    from hsakd_pl import load_student

    student = load_student(folder)
    with torch.no_grad():
        return torch.cat([student(part) for part in images.split(256)]).numpy()


def compared(logits: Any, reference: Any, labels: torch.Tensor | None) -> dict[str, float]:
    """Return accuracy, agreement with PyTorch's classes, and the largest difference relative to the largest logit."""
    reference = reference[: len(logits)]
    classes = logits.argmax(1)
    numbers = {
        "agreement": round(float((classes == reference.argmax(1)).mean()), 4),
        "difference": float(f"{abs(logits - reference).max() / abs(reference).max():.2e}"),
    }
    if labels is not None:
        numbers["accuracy"] = round(float((classes == labels[: len(logits)].numpy()).mean()), 4)
    return numbers


def render() -> None:
    """Write a table per device into docs/runtimes.md."""
    start, end = MARKS
    before, _, rest = DOCUMENT.read_text().partition(start)
    parts = [start, ""]
    for path in sorted(RESULTS.glob("*.json")):
        parts += tables(json.loads(path.read_text()))
    with replacing(DOCUMENT) as file:
        file.write(before + "\n".join([*parts, end]) + rest.partition(end)[2])


def tables(results: Results) -> list[str]:
    """Return the lines of a device's table: per road and network, times at both batch sizes, accuracy and agreement."""
    networks = [*results]
    environment = results[networks[0]]["environment"]
    roads = [road for road in ROADS if any(road in results[name] for name in networks)]
    heads = ["road", *(f"`{name}`" for name in networks)]
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    lines = [f"### {environment['device']}, {threads}", ""]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for road in roads:
        lines.append(f"| {' | '.join([road, *(cell(results[name].get(road)) for name in networks)])} |")
    return [*lines, ""]


def cell(numbers: dict[str, Any] | None) -> str:
    """Return the times at both batch sizes, the accuracy of a trained network, and the agreement if it is not full."""
    if numbers is None:
        return ""
    if FAILED in numbers:
        return "fails"
    times = " / ".join(f"{numbers[f'batch {batch}']['times']:.2f}" for batch in BATCHES)
    accuracy = f", {100 * numbers['accuracy']:.1f} %" if "accuracy" in numbers else ""
    agreement = "" if numbers["agreement"] == 1 else f", agrees {100 * numbers['agreement']:.1f} %"
    return times + accuracy + agreement


def main(arguments: Sequence[str], make_data: Callable[..., ImageDataModule] = CIFAR100DataModule) -> None:
    """Measure what is not stored yet, and store the numbers of each network when they are complete."""
    options = parser().parse_args(arguments)
    if options.render:
        render()
        return
    checkpoints = dict(text.split("=", 1) for text in options.checkpoints)
    device = processor()
    path = file_of(device)
    torch.set_num_threads(options.threads)
    data = make_data(local_path("--root", options.root), num_workers=0)
    roads = [road for road in options.roads if installed(road)]
    for road in set(options.roads) - {*roads}:
        print(f"{road}: {ROADS[road][1]} is not installed")
    if REFERENCE not in roads:
        raise UsageError(f"--roads: all are compared with {REFERENCE}: add it, and install onnxruntime")
    batches = list(evenly_spaced(data, data.description, options.images))
    images = as_input(torch.cat([images for images, _ in batches]), "float")
    labels = torch.cat([labels for _, labels in batches])
    for name in options.networks:
        stored = {} if options.again else stored_results(path).get(name, {})
        missing = missing_roads(stored, roads)
        if not missing:
            print(f"{name}: stored already")
            continue
        print(f"{name}: {', '.join(missing)}", flush=True)
        with tempfile.TemporaryDirectory(prefix="exports-") as temporary:
            folder = Path(temporary, "export")
            export(name, checkpoints.get(name), data, folder)
            numbers = measure(folder, missing, images, labels if name in checkpoints else None, options)
        environment = {
            "device": device,
            "threads": options.threads,
            "rounds": options.rounds,
            "images": len(images),
            "trained": name in checkpoints,
            "commit": checkout().commit,
            "date": time.strftime("%Y-%m-%d"),
        }
        results = stored_results(path)
        results[name] = {**stored, **numbers, "environment": environment}
        with replacing(path) as file:
            file.write(json.dumps(results, indent=1) + "\n")
        print(f"{path}: {name}", flush=True)
