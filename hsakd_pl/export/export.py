"""Writes a student into a folder of files that stand alone, each compared with PyTorch before it is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from hsakd_pl.data import Description, ImageDataModule
from hsakd_pl.errors import UsageError, require
from hsakd_pl.export.card import model_card
from hsakd_pl.export.checkpoint import Trained, read_trained
from hsakd_pl.export.folder import check_folder, whole_folder
from hsakd_pl.export.formats import FORMATS, ExportedFile, Run, check_onnx, onnx_runner, quantise, trace, write
from hsakd_pl.export.pictures import (
    CALIBRATED,
    as_input,
    batches_of,
    find_pictures,
    first_images,
    folder_pictures,
)
from hsakd_pl.export.student import CARD, WEIGHTS, Student, save
from hsakd_pl.files import local_path, replacing

MOST = 1e-4  # by which a logit may differ from PyTorch's, where none is above 20; of larger ones, in proportion


class Export(NamedTuple):
    """A folder that was written, whose student it is, what was compared in words, and the files."""

    folder: Path
    trained: Trained
    checked: str
    files: list[ExportedFile]


@torch.no_grad()
def export_student(
    checkpoint: str | Path,
    folder: str | Path,
    formats: Sequence[str] = FORMATS,
    network: str | nn.Module | None = None,
    description: Description | None = None,
    peer: int | None = None,
    input: str = "float",
    int8: str | None = None,
    images: str | Path | None = None,
    data: ImageDataModule | None = None,
) -> Export:
    """Export the student of a checkpoint into a folder, with ``config.json`` and a model card, ``README.md``.

    Each file is read again and compared with PyTorch on real images, at once and one alone. The folder is written whole
    or, after an error, not at all; an earlier export there is replaced. Raises UsageError where a logit differs by more
    than 1e-4 or 5e-6 of the largest, for a folder of anything else, and for what ``student_from_checkpoint`` refuses.

    Args:
        checkpoint: of any module, or a run's folder (its ``last.ckpt``), or a published weight file.
        folder: where to write.
        formats: of ``safetensors`` (for :func:`hsakd_pl.load_student`), ``pt2`` (torch.export) and ``onnx``.
        network: a registry name, or a network, where the file knows none.
        description: of the data, by default the checkpoint's own, or where it has none that of ``data``.
        peer: number, from 1, of the peer that is taken; by default the one with the best accuracy.
        input: of ``model.pt2`` and ``model.onnx``: ``float`` in [0, 1] or ``uint8``; in PyTorch both will do.
        int8: also ``model.int8.onnx``: ``dynamic``, or ``static`` with ranges from training images, or ``images``; its
            accuracy is measured on the test split.
        images: folder of pictures to compare on, in place of the test split.
        data: data module whose test split the files are verified on; by default sample photographs are used.
    """
    require(bool(formats) and {*formats} <= {*FORMATS}, "formats", ", ".join(formats), f"of {', '.join(FORMATS)}")
    require(input in ("float", "uint8"), "input", input, "float or uint8")
    require(int8 in (None, "dynamic", "static"), "int8", int8, "dynamic or static")
    require(int8 is None or "onnx" in formats, "int8", int8, "left out, or onnx one of the formats")
    if "onnx" in formats:
        check_onnx()
    target, path = local_path("folder", folder), local_path("checkpoint", checkpoint)
    check_folder(target)
    trained = read_trained(path, network, description, peer, data)
    student, known = trained.student, trained.student.description
    pictures = find_pictures(data, images, known)
    with whole_folder(target) as partial:
        save(student, partial, input=input)
        files = _compared(student, formats, partial, as_input(pictures.images, input))
        if int8 is not None:
            source = folder_pictures(images, known, CALIBRATED).images if images and int8 == "static" else None
            exact, small = _in_int8(partial / "model.onnx", known, int8, source, input, data)
            files = [each._replace(accuracy=exact) if each.path.suffix == ".onnx" else each for each in files] + [small]
        if "safetensors" not in formats:
            (partial / WEIGHTS).unlink()
        card = model_card(trained, target.name, input, pictures.origin, files, type(data).__name__)
        with replacing(partial / CARD) as file:
            file.write(card)
    return Export(target, trained, pictures.origin, files)


def _compared(student: Student, formats: Sequence[str], folder: Path, images: Tensor) -> list[ExportedFile]:
    """Write files of these formats; raises UsageError for one that gives other logits for the images (B, 3, S, S)."""
    wanted, files = student(images), []
    two = images[:2].repeat(2, 1, 1, 1)[:2]  # one image alone would be taken for the only size of a batch
    program = trace(student, two) if {"pt2", "onnx"} & {*formats} else None
    for form in formats:
        path, run = write(student, form, folder, None if form == "safetensors" else program)
        parts = ((run(images), wanted), (run(images[:1]), wanted[:1]))
        difference = float(torch.stack([(one - other).abs().max() for one, other in parts]).max())  # NaN stays NaN
        most = MOST * max(1.0, float(wanted.abs().max()) / 20)
        if not difference <= most:
            raise UsageError(
                f"{path.name}: a logit differs from PyTorch's by {difference:.1e}, more than {most:.0e} (the largest "
                f"is {float(wanted.abs().max()):.1e}): nothing was written; leave {form} out of formats"
            )
        files.append(ExportedFile(path, _megabytes(path), difference))
    return files


def _in_int8(
    path: Path, known: Description, int8: str, calibration: Tensor | None, input: str, data: ImageDataModule | None
) -> tuple[float, ExportedFile]:
    """Write ``model.int8.onnx`` and measure it on the test split; first is the accuracy of the graph at ``path``."""
    if data is None:
        raise UsageError("int8: its accuracy is measured on a test split: name the data, as for fit")
    if int8 == "static" and calibration is None:
        calibration = first_images(data, known, "train", CALIBRATED)
    small = quantise(path, None if calibration is None else as_input(calibration, input))
    runs: list[Run] = [onnx_runner(path), onnx_runner(small)]
    correct, count = [0, 0], 0
    for images, labels in batches_of(data, known, "test"):
        count += len(labels)
        for which, run in enumerate(runs):
            correct[which] += int(run(as_input(images, input)).argmax(1).eq(labels).sum())
    exact, rounded = (100 * each / count for each in correct)
    return exact, ExportedFile(small, _megabytes(small), accuracy=rounded)


def _megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6
