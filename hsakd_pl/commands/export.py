"""Export the student of a run: model.safetensors, model.pt2 and model.onnx, each compared with PyTorch, and a card.

The student has no branches, normalises by itself and takes batches of any size. The test split of the run's data
verifies it where that is there; other data are named as for fit, by --data and its options.
"""

from argparse import ArgumentParser
from pathlib import Path

from hsakd_pl.export.export import Export, export_student
from hsakd_pl.export.formats import FORMATS
from hsakd_pl.export.pictures import data_of
from hsakd_pl.files import local_path
from hsakd_pl.records.summary import aligned
from hsakd_pl.records.text_table import text_table
from hsakd_pl.runs.checkpoints import find_checkpoint


def command(parser: ArgumentParser, args: list[str]) -> None:
    """Export, then show what was written."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, a checkpoint, or a weight file")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write; by default export beside the checkpoint")
    parser.add_argument("--checkpoint", default="last", help="of the run: last, best or a path; by default last")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="by default all of them")
    parser.add_argument("--input", default="float", help="of pt2 and onnx: float in [0, 1], or uint8")
    parser.add_argument(
        "--int8", help="also write model.int8.onnx: dynamic, or static with ranges from training images"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures in place of the data's")
    parser.add_argument("--network", metavar="NAME", help="where the file does not know it")
    parser.add_argument("--peer", type=int, metavar="NUMBER", help="from 1; by default the most accurate")
    asked, options = parser.parse_known_intermixed_args(args)
    run = local_path("RUN", asked.run)
    path = find_checkpoint(asked.checkpoint, run) if run.is_dir() else run
    data = data_of(path.parent, options)
    given = {name: getattr(asked, name) for name in ("formats", "network", "peer", "input", "int8", "images")}
    print(summary(export_student(path, asked.folder or path.parent / "export", data=data, **given)))


def summary(export: Export) -> str:
    """Tell what was exported, and each file with its size, difference and accuracy."""
    known, student = export.trained.student.description, export.trained.student
    name = student.network.name or type(student.network).__name__
    size = f"{len(known.class_names)} classes, {known.image_size} x {known.image_size}"
    peer = f", peer {export.trained.peer}" if export.trained.peer else ""
    lines = [("student", f"{name}{peer}, {size}, from {export.trained.path}"), ("compared", f"over {export.checked}")]
    columns = "file", "MB", "difference", "accuracy"
    table = text_table([dict(zip(columns, file.cells, strict=True)) for file in export.files])
    return "\n".join([aligned(lines), table, aligned([("folder", str(export.folder))])])
