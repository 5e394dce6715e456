"""Predict the classes of pictures by a run, a checkpoint or an exported student: hsakd predict SOURCE PICTURES.

Neither configuration nor training images are needed. With options alone, hsakd predict is LightningCLI's, as fit is.
"""

from argparse import ArgumentParser
from pathlib import Path

import pytorch_lightning as pl

from hsakd_pl.data import ImageDataModule
from hsakd_pl.export import Student, load_student, student_from_checkpoint
from hsakd_pl.export.student import CONFIG
from hsakd_pl.modules import BaselineModule
from hsakd_pl.modules.metrics import TOP_K
from hsakd_pl.records.predictions import PredictionWriter
from hsakd_pl.records.progress import Progress


def command(parser: ArgumentParser, args: list[str]) -> None:
    """Predict, and say where the predictions are."""
    parser.add_argument(
        "source", metavar="SOURCE", help="a run's folder, a checkpoint, an export, or its id on the hub"
    )
    parser.add_argument("pictures", metavar="PICTURES", help="folder; images in folders inside count too")
    parser.add_argument("--folder", default=".", help="where predictions.csv and predictions.jsonl go; by default here")
    parser.add_argument("--top", type=int, default=TOP_K, help=f"classes per JSON line, at most and by default {TOP_K}")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time; by default 64")
    parser.add_argument("--num_workers", type=int, help="processes that open images; by default what the machine has")
    parser.add_argument("--on_error", default="row", help="of a broken image: row, by default, or raise")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu, mps")
    parser.add_argument("--network", metavar="NAME", help="where the source has none, or an import path")
    asked = parser.parse_args(args)
    student = find_student(asked.source, asked.network)
    options = {name: getattr(asked, name) for name in ("batch_size", "num_workers", "on_error")}
    data = ImageDataModule(predict_dir=asked.pictures, **options)
    data.num_classes = len(student.class_names)
    data.adopt(student.description)
    trainer = pl.Trainer(
        accelerator=asked.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(asked.folder, asked.top), Progress()],
    )
    trainer.predict(BaselineModule(student.network), data, return_predictions=False)


def find_student(source: str, network: str | None = None) -> Student:
    """Load what an export wrote, here or on the hub, or take it out of a run's folder or a checkpoint."""
    path = Path(source).expanduser()
    exported = (path / CONFIG).is_file() or not path.exists()
    return load_student(source, network) if exported else student_from_checkpoint(source, network)
