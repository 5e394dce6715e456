"""Export a student into a folder of files, each of which is compared with PyTorch before it is kept."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.export import ExportedProgram

from hsakd_pl.data import Description, ImageDataModule
from hsakd_pl.errors import UsageError, require
from hsakd_pl.export.card import model_card, results
from hsakd_pl.export.checkpoint import Trained, read_trained
from hsakd_pl.export.folder import check_folder, whole_folder
from hsakd_pl.export.formats import (
    EXPORT_FORMATS,
    ExportedFile,
    GraphError,
    Run,
    check_onnx,
    first_words,
    graph_error,
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
from hsakd_pl.networks.weights import describe

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
        left_out: a sentence for each obstacle to a format that was asked for.
    """

    folder: Path
    trained: Trained
    checked: str
    files: list[ExportedFile]
    left_out: list[str]


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

    Each file is read again and compared with PyTorch on real images, in a batch and one image alone. A format that a
    network cannot have, since PyTorch cannot trace it for example, is left out, and the log says why. The folder is
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
    if student.embeds and int8 is not None:
        raise UsageError("int8: its accuracy is measured by classes, and an embedding network has none: omit int8")
    measured = results(trained)  # before the work, since a file of the run may be broken
    pictures = find_pictures(data, images, student.description)
    with whole_folder(target) as partial:
        save(student, partial, input=input)
        files, left_out = _write_compared(student, formats, partial, as_input(pictures.images, input))
        for sentence in left_out:
            rank_zero_info(sentence)
        if int8 is not None and not (partial / "model.onnx").is_file():
            raise UsageError(f"int8 is made from model.onnx, which cannot be written: omit int8. {left_out[0]}")
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
    return Export(target, trained, pictures.origin, files, left_out)


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


class Answers(NamedTuple):
    """What a student answers in PyTorch.

    Args:
        batches: images (B, 3, S, S), in a batch and one image alone.
        logits: logits (B, N) of each batch.
        tolerance: largest difference of a logit from these.
        obstacle: reason why a graph cannot answer the same, if there is one.
        repeatable: whether it answers the same when it is asked again.
    """

    batches: list[Tensor]
    logits: list[Tensor]
    tolerance: float
    obstacle: GraphError | None = None
    repeatable: bool = True

    def difference(self, run: Run) -> float:
        """Return the largest difference of a logit of a function; NaN if one is."""
        pairs = zip(self.batches, self.logits, strict=True)
        differences = [(run(images) - logits).abs().max() for images, logits in pairs]
        return float(torch.stack(differences).amax())


def _answers(student: Student, images: Tensor) -> Answers:
    """Call a student twice, and return what it answers for images (B, 3, S, S); log what depends on the batch.

    Raises UsageError for a network that fails.
    """
    try:
        logits = student(images)
    except UsageError:
        raise
    except Exception as error:  # a network can raise anything
        raise UsageError(
            f"network: {describe(student.network)} fails for images {tuple(images.shape)} ({type(error).__name__}: "
            f"{first_words(error)}): repair it, or name the network that was trained"
        ) from error
    largest = float(logits.abs().max())
    tolerance = TOLERANCE * max(1.0, largest / TOLERATED_UP_TO)
    if not torch.allclose(student(images), logits, rtol=0, atol=tolerance, equal_nan=True):
        cause = "its logits of the same images differ from call to call, by chance or by what it remembers"
        return Answers([images], [logits], tolerance, graph_error(student, cause), repeatable=False)
    try:
        alone = student(images[:1])
    except Exception as error:
        cause = "it fails for one image alone"
        return Answers([images], [logits], tolerance, graph_error(student, cause, error))
    if not torch.allclose(alone, logits[:1], rtol=0, atol=tolerance, equal_nan=True):
        rank_zero_info(
            f"{describe(student.network)} answers for an image depending on the others in its batch, and so do its "
            "exported files: norms with running statistics, for example, would not"
        )
    return Answers([images, images[:1]], [logits, alone], tolerance)


def _write_compared(
    student: Student, formats: Sequence[str], folder: Path, images: Tensor
) -> tuple[list[ExportedFile], list[str]]:
    """Write files of these formats; return them, and a sentence for each obstacle to another one.

    Raises UsageError if no file can be written, and if one returns other logits for the images (B, 3, S, S).
    """
    answers = _answers(student, images)
    files: list[ExportedFile] = []
    obstacles: list[GraphError] = []
    if "safetensors" in formats:
        files.append(_write_one(student, "safetensors", folder, None, answers))
    graphs = [export_format for export_format in formats if export_format != "safetensors"]
    program = None
    if graphs and answers.obstacle is None:
        try:
            two_images = images[:2].repeat(2, 1, 1, 1)[:2]  # a single image would be taken for the only batch size
            program = trace(student, two_images)
        except GraphError as error:
            obstacles.append(error)
    elif graphs and answers.obstacle is not None:
        obstacles.append(answers.obstacle)
    for export_format in graphs if program is not None else ():
        written = _try_graph(student, export_format, folder, program, answers)
        if isinstance(written, GraphError):
            obstacles.append(written)
        else:
            files.append(written)
    if not files:
        raise obstacles[0]
    order = [f"model.{export_format}" for export_format in formats]
    files.sort(key=lambda file: order.index(file.path.name))
    names = ", ".join(file.path.name for file in files)
    return files, [f"only {names} is written: {obstacle}" for obstacle in obstacles]


def _try_graph(
    student: Student, export_format: str, folder: Path, program: ExportedProgram | None, answers: Answers
) -> ExportedFile | GraphError:
    """Write and compare a graph; return the obstacle, and leave no file, if it cannot be written or run."""
    try:
        return _write_one(student, export_format, folder, program, answers)
    except GraphError as error:
        (folder / f"model.{export_format}").unlink(missing_ok=True)
        return error


def _write_one(
    student: Student, export_format: str, folder: Path, program: ExportedProgram | None, answers: Answers
) -> ExportedFile:
    """Write a file, and compare it; raises UsageError, for a graph that cannot be run GraphError."""
    path, run = write(student, export_format, folder, program)
    if not answers.repeatable:
        return ExportedFile(path, size_in_megabytes(path))
    try:
        difference = answers.difference(run)
    except Exception as error:
        raise graph_error(student, f"{path.name} cannot be run", error) from error
    if not difference <= answers.tolerance:
        largest = float(answers.logits[0].abs().max())
        raise UsageError(
            f"{path.name}: a logit differs from PyTorch's by {difference:.1e}, more than {answers.tolerance:.0e} (the "
            f"largest logit is {largest:.1e}); nothing was written; leave {export_format} out of formats"
        )
    return ExportedFile(path, size_in_megabytes(path), difference)


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
