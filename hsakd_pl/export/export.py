"""Export a student into a folder of files, each of which is compared with PyTorch before it is kept."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.export import ExportedProgram

from hsakd_pl.data import Description, ImageDataModule
from hsakd_pl.errors import UsageError, counted, require
from hsakd_pl.export.calibration import calibration_next_to, save_branches
from hsakd_pl.export.card import Hub, model_card, results
from hsakd_pl.export.checkpoint import Trained, read_trained
from hsakd_pl.export.folder import card_digest, check_folder, whole_folder
from hsakd_pl.export.formats import (
    EXPORT_FORMATS,
    INT8_FILE,
    QUANTISED,
    RANGES,
    ExportedFile,
    GraphError,
    Run,
    check_onnx,
    first_words,
    graph_error,
    quantise,
    size_in_megabytes,
    trace,
    write,
)
from hsakd_pl.export.measure import Measurement
from hsakd_pl.export.measure import measure as measure_graphs
from hsakd_pl.export.pictures import (
    CALIBRATION_IMAGES,
    Pictures,
    as_input,
    find_pictures,
    first_images,
    folder_pictures,
)
from hsakd_pl.export.quantised import quantise_trained
from hsakd_pl.export.student import Student, save
from hsakd_pl.files import local_path, replacing
from hsakd_pl.files.hub import CARD_FILE, EXPORT_FILE, GRAPH_FILE, WEIGHTS_FILE
from hsakd_pl.networks.weights import describe
from hsakd_pl.records.predictions import digest_of_networks
from hsakd_pl.version import __version__

# Largest difference of a logit from PyTorch's, for logits up to 20; larger logits may differ in proportion.
TOLERANCE = 1e-4
TOLERATED_UP_TO = 20.0
EXPORT_FORMAT = 1  # of export.json


class Export(NamedTuple):
    """A written export.

    Args:
        folder: folder of the files.
        trained: exported student and where it comes from.
        checked: images that the files were compared on, in words.
        files: exported files.
        left_out: a sentence for each obstacle to a format that was asked for.
        measurement: accuracy, agreement and speed of the ONNX files; None if they were not measured.
        notes: what users of the files should know, in sentences.
    """

    folder: Path
    trained: Trained
    checked: str
    files: list[ExportedFile]
    left_out: list[str]
    measurement: Measurement | None
    notes: list[str]


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
    measure: bool | None = None,
    licence: str | None = None,
    base_model: str | None = None,
) -> Export:
    """Export the student of a checkpoint into a folder, with ``config.json`` and a model card, ``README.md``.

    Each file is read again and compared with PyTorch on real images, in a batch and one image alone. A format that a
    network cannot have, since PyTorch cannot trace it for example, is left out, and the log says why. The folder is
    written completely or, after an error, not at all; an earlier export there is replaced. ``export.json`` has what was
    compared, quantised and measured, for programs.

    Args:
        checkpoint: checkpoint of any module, folder of a run (its ``last.ckpt``), or published weight file.
        folder: folder to write.
        formats: one or more of ``safetensors`` (for :func:`hsakd_pl.load_student`), ``pt2`` (torch.export) and
            ``onnx``.
        network: registered name of the network, or a network, if the file does not name one.
        description: description of the data; by default that of the checkpoint, or else that of ``data``.
        peer: number of the peer to export, from 1; by default that of the best accuracy.
        input: input of ``model.pt2`` and ``model.onnx``: ``float`` in [0, 1] or ``uint8``. In PyTorch both work.
        int8: also write ``model.int8.onnx``: ``static``, small and fast, with ranges of the activations from 256
            training images or ``images``, or ``dynamic``, which is small but slower than float32.
        images: folder of images to compare on, instead of the test split.
        data: data module whose test split the files are verified on; by default sample photographs are used.
        measure: measure accuracy, agreement and speed of the ONNX files on the test split; by default where there is
            one.
        licence: licence of the weights for the card, as the Hugging Face Hub names it, such as ``mit``.
        base_model: id on the hub of the model that the student's weights started from; by default that of weights
            that timm publishes.

    Returns:
        Description of the export: its folder, its files and what was compared.

    Raises:
        UsageError: if a logit differs by more than 1e-4 and 5e-6 of the largest, if the folder contains other files,
            and as :func:`hsakd_pl.export.student_from_checkpoint` does.

    Examples:
        >>> torch.save(create_network("resnet8", num_classes=10).state_dict(), "resnet8.pth")
        >>> export = export_student(
        ...     "resnet8.pth", "exported", ["safetensors"], network="resnet8", data=DigitsDataModule()
        ... )
        >>> sorted(path.name for path in export.folder.iterdir())
        ['README.md', 'config.json', 'export.json', 'model.safetensors']
    """
    _check_options(formats, input, int8, measure, images, data)
    hub = Hub(licence, base_model)
    hub.check()
    target = local_path("folder", folder)
    check_folder(target)
    trained = read_trained(local_path("checkpoint", checkpoint), network, description, peer, data)
    student = trained.student
    if int8 == "static" and images is None and data is None and not trained.ranges:
        raise UsageError("int8: static ranges come from training images: name the data, as for fit, or images")
    if student.embeds and int8 is not None:
        raise UsageError("int8: its accuracy is measured by classes, and an embedding network has none: omit int8")
    measured = results(trained)  # before the work, since a file of the run may be broken
    calibration = calibration_next_to(trained)
    pictures = find_pictures(data, images, student.description)
    with whole_folder(target) as partial:
        facts: dict[str, Any] = {"input": input, "predictions_digest": digest_of_networks([student.network])}
        if calibration is not None:
            facts["calibration"] = calibration.saved()
            save_branches(calibration, trained, partial)
        save(student, partial, **facts)
        files, left_out = _write_compared(student, formats, partial, as_input(pictures.images, input))
        for sentence in left_out:
            rank_zero_info(sentence)
        quantised = None
        if int8 is not None:
            if not (partial / GRAPH_FILE).is_file():
                raise UsageError(f"int8 is made from model.onnx, which cannot be written: omit int8. {left_out[0]}")
            quantised = _add_int8(partial, trained, int8, images, input, data)
            files.append(ExportedFile(partial / INT8_FILE, size_in_megabytes(partial / INT8_FILE)))
        measurement = _measure(partial, student.description, input, data, measure, int8)
        if measurement is not None:
            files = [file._replace(accuracy=measurement.accuracy(file.path.name)) for file in files]
        notes = _notes(measurement, int8)
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
            measurement,
            [*_in_words(quantised), *notes],
            calibration,
            hub,
        )
        with replacing(partial / CARD_FILE) as file:
            file.write(card)
        record = _record(pictures, files, quantised, measurement, card_digest(partial))
        with replacing(partial / EXPORT_FILE) as file:
            json.dump(record, file, indent=1, ensure_ascii=False)
    written = [file._replace(path=target / file.path.name) for file in files]
    return Export(target, trained, pictures.origin, written, left_out, measurement, notes)


def _check_options(
    formats: Sequence[str],
    input: str,
    int8: str | None,
    measure: bool | None,
    images: str | Path | None,
    data: ImageDataModule | None,
) -> None:
    """Raise UsageError for options that are not valid, and for missing libraries."""
    valid_formats = bool(formats) and set(formats) <= set(EXPORT_FORMATS)
    require(valid_formats, "formats", ", ".join(formats), f"one or more of {', '.join(EXPORT_FORMATS)}")
    require(input in ("float", "uint8"), "input", input, "float or uint8")
    require(int8 in (None, "dynamic", "static"), "int8", int8, "dynamic or static")
    for option, value in (("int8", int8), ("measure", measure or None)):
        if value is not None and "onnx" not in formats:
            raise UsageError(
                f"{option} is {value}, but formats lacks onnx, which it is made from: add onnx, or omit {option}"
            )
    if int8 is not None and measure is not False and data is None:
        raise UsageError(
            "int8: its accuracy is measured on a test split: name the data, as for fit, or add --no-measure "
            "(measure=False)"
        )
    if measure and data is None:
        raise UsageError("measure: it needs a test split: name the data, as for fit")
    if "onnx" in formats:
        check_onnx()


class Answers(NamedTuple):
    """Hold a student's logits in PyTorch, with which those of exported files are compared.

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
    trained: Trained,
    int8: str,
    images: str | Path | None,
    input: str,
    data: ImageDataModule | None,
) -> dict[str, Any]:
    """Write ``model.int8.onnx``; return how it was quantised."""
    graph = folder / GRAPH_FILE
    if int8 == "dynamic":
        quantise(graph, None)
        return {"kind": int8}
    facts = {
        "kind": int8,
        "weights": "int8, a scale per output channel",
        "activations": "uint8, a scale per tensor",
        "operators": [*QUANTISED],
    }
    if trained.ranges:
        quantise_trained(graph, trained, input)
        return facts | {"ranges": "trained"}
    calibration = _calibration_images(trained.student.description, images, data)
    quantise(graph, as_input(calibration.images, input))
    return facts | {
        "calibration_images": len(calibration.images),
        "calibrated_on": calibration.origin,
        "seed": None if images is not None or data is None else data.seed,
        "ranges": RANGES,
    }


def _calibration_images(description: Description, images: str | Path | None, data: ImageDataModule | None) -> Pictures:
    """Return images of a folder or of the training split; raises UsageError if they cannot be read."""
    if images is not None:
        return folder_pictures(images, description, CALIBRATION_IMAGES)
    assert data is not None, "the options were checked"
    try:
        training = first_images(data, description, "train", CALIBRATION_IMAGES)
    except UsageError as error:
        raise UsageError(
            f"int8 is calibrated on training images, which cannot be read ({error}): name a folder of pictures by "
            "images, or take int8 dynamic"
        ) from error
    seed = f", drawn with seed {data.seed}"
    return Pictures(training, f"{counted(len(training), 'training image')} of {type(data).__name__}{seed}")


def _in_words(quantised: dict[str, Any] | None) -> list[str]:
    """Return sentences for the card that say how the graph was quantised."""
    if quantised is None:
        return []
    if quantised["kind"] == "dynamic":
        return [f"{INT8_FILE}: int8 weights; the ranges of the activations are measured anew for each image."]
    source = "that the network was trained with"
    if quantised["ranges"] == RANGES:
        source = f"over {quantised['calibrated_on']}"
    return [
        f"{INT8_FILE}: weights {quantised['weights']}, activations {quantised['activations']}, with the smallest and "
        f"largest values {source}."
    ]


def _measure(
    folder: Path,
    description: Description,
    input: str,
    data: ImageDataModule | None,
    wanted: bool | None,
    int8: str | None,
) -> Measurement | None:
    """Measure the ONNX files of a folder if that is ``wanted``; by default where there is a test split.

    Raises UsageError if it is wanted, or an int8 file was, and there is none.
    """
    graphs = [folder / name for name in (GRAPH_FILE, INT8_FILE) if (folder / name).is_file()]
    if wanted is False or data is None or not graphs:
        return None
    try:
        data.adopt(description)
        data.setup("test")
    except UsageError as error:
        if wanted or int8 is not None:
            raise UsageError(
                f"measure: the test split cannot be read ({error}): repair that, or add --no-measure (measure=False)"
            ) from error
        return None  # the pictures that were compared have said so
    return measure_graphs(graphs, description, input, data)


def _notes(measurement: Measurement | None, int8: str | None) -> list[str]:
    """Return sentences about what is slower than the float graph."""
    notes = []
    if int8 == "dynamic":
        notes.append(f"{INT8_FILE} is dynamic, which makes the file small but not fast: static is for speed.")
    slower = [] if measurement is None else measurement.slower()
    if slower:
        cases = " and ".join(f"{row.times_as_fast:.2f} times as fast at batch {row.batch_size}" for row in slower)
        notes.append(
            f"On this machine {INT8_FILE} is slower than {GRAPH_FILE}: {cases}. Use {GRAPH_FILE} on CPUs like it."
        )
    return notes


def _record(
    pictures: Pictures,
    files: list[ExportedFile],
    quantised: dict[str, Any] | None,
    measurement: Measurement | None,
    digest: str,
) -> dict[str, Any]:
    """Return the content of ``export.json``."""
    return {
        "format": EXPORT_FORMAT,
        "hsakd_pl": __version__,
        "files": {
            file.path.name: {"megabytes": round(file.megabytes, 4), "difference": file.difference} for file in files
        },
        "compared_on": pictures.origin,
        "int8": quantised,
        "measured": None if measurement is None else measurement.saved(),
        "card_sha256": digest,
    }
