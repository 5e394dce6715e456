"""Export a student into a folder of files, each of which is compared with PyTorch before it is kept."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.data import Description, ImageDataModule
from hsakd_pl.errors import UsageError, require
from hsakd_pl.export.card import model_card, results
from hsakd_pl.export.checkpoint import Trained, read_trained
from hsakd_pl.export.folder import check_folder, whole_folder
from hsakd_pl.export.formats import (
    EXPORT_FORMATS,
    ExportedFile,
    check_onnx,
    onnx_runner,
    quantise,
    size_in_megabytes,
    trace,
    write,
)
from hsakd_pl.export.pictures import (
    CALIBRATION_IMAGES,
    as_input,
    batches_of,
    find_pictures,
    first_images,
    folder_pictures,
)
from hsakd_pl.export.student import Student, save
from hsakd_pl.files import local_path, replacing
from hsakd_pl.files.hub import CARD_FILE, WEIGHTS_FILE

# Largest difference of a logit from PyTorch's, for logits up to 20; larger logits may differ in proportion.
TOLERANCE = 1e-4
TOLERATED_UP_TO = 20.0


class Export(NamedTuple):
    """A written export.

    Args:
        folder: folder of the files.
        trained: exported student and where it comes from.
        checked: images that the files were compared on, in words.
        files: exported files.
    """

    folder: Path
    trained: Trained
    checked: str
    files: list[ExportedFile]


@torch.no_grad()
def export_student(
    checkpoint: str | Path,
    folder: str | Path,
    formats: Sequence[str] = EXPORT_FORMATS,
    network: str | nn.Module | None = None,
    description: Description | None = None,
    peer: int | None = None,
    input: str = "float",
    int8: str | None = None,
    images: str | Path | None = None,
    data: ImageDataModule | None = None,
) -> Export:
    """Export the student of a checkpoint into a folder, with ``config.json`` and a model card, ``README.md``.

    Each file is read again and compared with PyTorch on real images, in a batch and one image alone. The folder is
    written completely or, after an error, not at all; an earlier export there is replaced.

    Raises UsageError if a logit differs by more than 1e-4 and 5e-6 of the largest, if the folder contains other files,
    and as :func:`hsakd_pl.export.student_from_checkpoint` does.

    Args:
        checkpoint: checkpoint of any module, folder of a run (its ``last.ckpt``), or published weight file.
        folder: folder to write.
        formats: one or more of ``safetensors`` (for :func:`hsakd_pl.load_student`), ``pt2`` (torch.export) and
            ``onnx``.
        network: registered name of the network, or a network, if the file does not name one.
        description: description of the data; by default that of the checkpoint, or else that of ``data``.
        peer: number of the peer to export, from 1; by default that of the best accuracy.
        input: input of ``model.pt2`` and ``model.onnx``: ``float`` in [0, 1] or ``uint8``. In PyTorch both work.
        int8: also write ``model.int8.onnx`` and measure its accuracy on the test split: ``dynamic``, or ``static`` with
            ranges from training images or ``images``.
        images: folder of images to compare on, instead of the test split.
        data: data module whose test split the files are verified on; by default sample photographs are used.

    Examples:
        >>> export = export_student("runs/student/last.ckpt", "exported")  # doctest: +SKIP
        >>> student = load_student("exported")  # doctest: +SKIP
    """
    _check_options(formats, input, int8)
    target = local_path("folder", folder)
    check_folder(target)
    trained = read_trained(local_path("checkpoint", checkpoint), network, description, peer, data)
    student = trained.student
    measured = results(trained)  # before the work, since a file of the run may be broken
    pictures = find_pictures(data, images, student.description)
    with whole_folder(target) as partial:
        save(student, partial, input=input)
        files = _write_compared(student, formats, partial, as_input(pictures.images, input))
        if int8 is not None:
            calibration = None
            if int8 == "static" and images is not None:
                calibration = folder_pictures(images, student.description, CALIBRATION_IMAGES).images
            files = _add_int8(partial, files, student.description, int8, calibration, input, data)
        if "safetensors" not in formats:
            (partial / WEIGHTS_FILE).unlink()
        card = model_card(
            trained,
            measured,
            os.path.basename(os.path.abspath(target)),
            input,
            pictures.origin,
            files,
            type(data).__name__,
        )
        with replacing(partial / CARD_FILE) as file:
            file.write(card)
    return Export(target, trained, pictures.origin, files)


def _check_options(formats: Sequence[str], input: str, int8: str | None) -> None:
    """Raise UsageError for options that are not valid, and for missing libraries."""
    valid_formats = bool(formats) and set(formats) <= set(EXPORT_FORMATS)
    require(valid_formats, "formats", ", ".join(formats), f"one or more of {', '.join(EXPORT_FORMATS)}")
    require(input in ("float", "uint8"), "input", input, "float or uint8")
    require(int8 in (None, "dynamic", "static"), "int8", int8, "dynamic or static")
    if int8 is not None and "onnx" not in formats:
        raise UsageError(f"int8 is {int8}, but formats lacks onnx, which it is made from: add onnx, or omit int8")
    if "onnx" in formats:
        check_onnx()


def _write_compared(student: Student, formats: Sequence[str], folder: Path, images: Tensor) -> list[ExportedFile]:
    """Write files of these formats; raises UsageError if one returns other logits for the images (B, 3, S, S)."""
    logits = student(images)
    largest = float(logits.abs().max())
    tolerance = TOLERANCE * max(1.0, largest / TOLERATED_UP_TO)
    program = None
    if "pt2" in formats or "onnx" in formats:
        two_images = images[:2].repeat(2, 1, 1, 1)[:2]  # a single image would be taken for the only batch size
        program = trace(student, two_images)
    files = []
    for export_format in formats:
        path, run = write(student, export_format, folder, None if export_format == "safetensors" else program)
        difference_of_batch = (run(images) - logits).abs().max()
        difference_of_one = (run(images[:1]) - logits[:1]).abs().max()
        difference = float(torch.maximum(difference_of_batch, difference_of_one))  # NaN if either is
        if not difference <= tolerance:
            raise UsageError(
                f"{path.name}: a logit differs from PyTorch's by {difference:.1e}, more than {tolerance:.0e} (the "
                f"largest logit is {largest:.1e}); nothing was written; leave {export_format} out of formats"
            )
        files.append(ExportedFile(path, size_in_megabytes(path), difference))
    return files


def _add_int8(
    folder: Path,
    files: list[ExportedFile],
    description: Description,
    int8: str,
    calibration: Tensor | None,
    input: str,
    data: ImageDataModule | None,
) -> list[ExportedFile]:
    """Write ``model.int8.onnx``; return the files, with the accuracies of both graphs on the test split."""
    if data is None:
        raise UsageError("int8: its accuracy is measured on a test split: name the data, as for fit")
    if int8 == "static" and calibration is None:
        calibration = first_images(data, description, "train", CALIBRATION_IMAGES)
    graph = folder / "model.onnx"
    int8_graph = quantise(graph, None if calibration is None else as_input(calibration, input))
    accuracy, int8_accuracy = _accuracies([graph, int8_graph], description, input, data)
    files = [file._replace(accuracy=accuracy) if file.path == graph else file for file in files]
    return [*files, ExportedFile(int8_graph, size_in_megabytes(int8_graph), accuracy=int8_accuracy)]


def _accuracies(graphs: list[Path], description: Description, input: str, data: ImageDataModule) -> list[float]:
    """Return the accuracy in percent of each graph on the test split."""
    runs = [onnx_runner(graph) for graph in graphs]
    correct = [0 for _ in graphs]
    count = 0
    for images, labels in batches_of(data, description, "test"):
        inputs = as_input(images, input)
        count += len(labels)
        for index, run in enumerate(runs):
            correct[index] += int(run(inputs).argmax(1).eq(labels).sum())
    return [100 * number / count for number in correct]
