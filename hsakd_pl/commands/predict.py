"""Classify images with a run, a checkpoint or an exported student: hsakd predict SOURCE IMAGES.

Neither a configuration nor training images are needed. With options alone, as in hsakd predict --config FILE, the
command takes the options of fit.
"""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsakd_pl.export import Student

BATCH_SIZE = 64
TOP_CLASSES = 5  # of an image in predictions.jsonl


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "source", metavar="SOURCE", help="folder of a run, a checkpoint, an export, or the id of an export on the hub"
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="folders of images, including those in subfolders, or image files"
    )
    parser.add_argument("--folder", default=".", help="where predictions.csv and predictions.jsonl go (default: here)")
    parser.add_argument(
        "--top", type=int, default=TOP_CLASSES, help="classes per image in predictions.jsonl (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, help=f"images per batch (default: {BATCH_SIZE}, fewer if large)")
    parser.add_argument("--num_workers", type=int, help="processes that open images (default: chosen by CPU count)")
    parser.add_argument(
        "--on_error", default="row", help="for broken images: row, an empty row, or raise (default: row)"
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu or mps (default: auto)")
    parser.add_argument(
        "--network", metavar="NAME", help="name or import path, if the source does not know its network"
    )


def run(options: Namespace) -> None:
    """Predict, and print where the predictions are."""
    source = here(options.source)

    import pytorch_lightning as pl

    from hsakd_pl.cpu.threads import share_cores
    from hsakd_pl.data import ImageDataModule
    from hsakd_pl.data.limits import images_per_pass
    from hsakd_pl.errors import UsageError
    from hsakd_pl.files.lock import sole_writer
    from hsakd_pl.modules import BaselineModule
    from hsakd_pl.records.predictions import PredictionWriter
    from hsakd_pl.records.progress import Progress
    from hsakd_pl.runs.accelerator import check_accelerator

    check_accelerator(options.accelerator, "accelerator")
    share_cores()
    student = find_student(source, options.network)
    if student.embeds:
        raise UsageError(
            f"{source} is an embedding network, which predicts no classes: call load_student(FOLDER)(images) in Python"
        )
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = images_per_pass(BATCH_SIZE, student.description.image_size)
    data = ImageDataModule(
        predict_dir=options.images,
        batch_size=batch_size,
        num_workers=options.num_workers,
        on_error=options.on_error,
    )
    data.num_classes = len(student.class_names)
    data.adopt(student.description)
    trainer = pl.Trainer(
        accelerator=options.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(options.folder, options.top, "folder"), Progress()],
    )
    with sole_writer(options.folder, "name another folder with --folder"):
        trainer.predict(BaselineModule(student.network), data, return_predictions=False)


def here(source: str) -> str:
    """Return a source that exists here, or the folder that an export was downloaded to from the hub.

    Without PyTorch, whose import takes longer than to notice a wrong name.
    """
    from hsakd_pl.files import local_path, naming
    from hsakd_pl.files.hub import download

    path = local_path("SOURCE", source)
    with naming(path):
        return source if path.exists() else str(download(source))


def find_student(source: str, network: str | None = None) -> "Student":
    """Return the student of the folder of an export or of a run, or of a checkpoint."""
    from hsakd_pl.export import load_student, student_from_checkpoint
    from hsakd_pl.files import local_path, naming
    from hsakd_pl.files.hub import CONFIG_FILE

    path = local_path("SOURCE", source)
    with naming(path):
        is_export = (path / CONFIG_FILE).is_file()
    return load_student(source, network) if is_export else student_from_checkpoint(source, network)
