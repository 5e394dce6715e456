"""Export the student of a run: model.safetensors, model.pt2 and model.onnx, each compared with PyTorch, and a card.

The student has no branches, normalises its input and takes batches of any size. It is verified on the test split of the
run's data where that is available; --data and its options, as for fit, name other data.
"""

from argparse import ArgumentError, ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsakd_pl.commands.options import check_unrepeated
from hsakd_pl.errors import UsageError, counted
from hsakd_pl.files.escaping import show

if TYPE_CHECKING:
    from hsakd_pl.cli.parser import Parser
    from hsakd_pl.data import ImageDataModule
    from hsakd_pl.export.export import Export


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command; all others are options of ``fit`` for the data."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, a checkpoint, or a weight file")
    parser.add_argument("folder", type=Path, nargs="?", help="where to write (default: export next to the checkpoint)")
    parser.add_argument("--checkpoint", default="last", help="last, best or a path (default: last)")
    parser.add_argument("--formats", nargs="+", metavar="FORMAT", help="safetensors, pt2 and onnx (default: all three)")
    parser.add_argument("--input", default="float", help="input of pt2 and onnx: float in [0, 1] (default), or uint8")
    parser.add_argument(
        "--int8",
        nargs="?",
        const="static",
        metavar="KIND",
        help="also write model.int8.onnx: static (default), small and fast, with ranges from training images, or "
        "dynamic, which is small but slow",
    )
    parser.add_argument(
        "--measure",
        action=BooleanOptionalAction,
        help="measure accuracy, agreement and speed of the ONNX files on the test split (default: where there is one)",
    )
    parser.add_argument("--license", metavar="ID", help="licence of the weights, for the card and the hub: mit, ...")
    parser.add_argument("--base_model", metavar="ID", help="model on the hub that the weights started from")
    parser.add_argument("--images", type=Path, metavar="DIR", help="images to verify on, instead of the test split")
    parser.add_argument("--network", metavar="NAME", help="name of the network, if the file does not know it")
    parser.add_argument("--peer", type=int, metavar="NUMBER", help="peer, from 1 (default: the most accurate one)")
    parser.set_defaults(fit_options=[])


def run(options: Namespace) -> None:
    """Export, then print what was written."""
    from hsakd_pl.cpu.threads import share_cores
    from hsakd_pl.export.export import export_student
    from hsakd_pl.export.formats import EXPORT_FORMATS
    from hsakd_pl.files import local_path
    from hsakd_pl.runs.checkpoints import find_checkpoint

    check_effective_options(options)
    share_cores()
    source = local_path("RUN", options.run)
    checkpoint = find_checkpoint(options.checkpoint, source) if source.is_dir() else source
    exported = export_student(
        checkpoint,
        options.folder or checkpoint.parent / "export",
        formats=options.formats or EXPORT_FORMATS,
        network=options.network,
        peer=options.peer,
        input=options.input,
        int8=options.int8,
        images=options.images,
        data=data_of(checkpoint.parent, options.fit_options),
        measure=options.measure,
        licence=options.license,
        base_model=options.base_model,
    )
    show(summary(exported))


def check_effective_options(options: Namespace) -> None:
    """Raise UsageError for options that have no effect together."""
    if options.input != "float" and options.formats == ["safetensors"]:
        raise UsageError(f"input {options.input} has no effect on safetensors, which takes both: add pt2 or onnx")
    if options.checkpoint != "last" and not options.run.is_dir():
        raise UsageError(
            f"checkpoint {options.checkpoint} has no effect: {options.run} is not the folder of a run, leave it out"
        )
    measures = options.int8 is not None or options.measure is not None
    if options.images is not None and options.fit_options and not measures and options.run.is_dir():
        raise UsageError(
            f"{options.fit_options[0]} has no effect with images, on which the files are compared: leave one of them "
            "out, or add int8"
        )
    check_unrepeated("formats", options.formats or [])


def data_of(folder: Path | None, fit_options: list[str]) -> "ImageDataModule | None":
    """Return the data module of a run's ``config.yaml``, with ``fit_options``, ``--data ...``, replacing its options.

    Args:
        folder: folder of the run; without one, the options name the data.
        fit_options: options of ``fit``.

    Return None where neither names an image data module; raises UsageError where it cannot be built. A file never
    chooses code: a class of other packages is imported only if ``fit_options`` name it too.
    """
    import pytorch_lightning as pl
    import yaml

    from hsakd_pl.cli.mistakes import first_and_last_line
    from hsakd_pl.cli.parser import Parser
    from hsakd_pl.data import ImageDataModule
    from hsakd_pl.files import naming, read_text
    from hsakd_pl.files.careful import load_yaml

    parser = Parser()
    parser.add_lightning_class_args(pl.LightningDataModule, "data", subclass_mode=True, required=False)
    config = Path(folder or "", "config.yaml")
    shown_options = " ".join(fit_options) or "no options"
    try:
        with naming(config):
            is_run = folder is not None and config.is_file()
        content = load_yaml(read_text(config)) if is_run else {}
        data_options = content.get("data") if isinstance(content, dict) else None
        if data_options is not None:
            _use_data_of(parser, config, data_options, fit_options)
        data = parser.instantiate_classes(parser.parse_args(fit_options)).get("data")
    except UsageError:
        raise
    except (ArgumentError, yaml.YAMLError, TypeError, ValueError) as error:
        of_run = f" of {config}, with" if is_run else ","
        raise UsageError(f"the data{of_run} {shown_options}: {first_and_last_line(str(error))}") from error
    if not isinstance(data, ImageDataModule):
        return None
    seed = content.get("seed_everything") if isinstance(content, dict) else None
    if data.seed is None and type(seed) is int:
        data.seed = seed  # which decided the images that the run held out
    return data


def _use_data_of(parser: "Parser", config: Path, data_options: Any, fit_options: list[str]) -> None:
    """Make a run's options of the data the defaults of a parser, unless they name a foreign class, and log that."""
    from hsakd_pl.cli.arguments import class_paths, option_tree

    named = {path for _, path in class_paths(option_tree(fit_options).get("data"), "--data")}
    for option, path in class_paths(data_options, "--data"):
        if not _is_of_package(path) and path not in named:
            show(f"{config} names {path}: to verify on the data of that class, add {option} {path}")
            return
    if isinstance(data_options, str):
        data_options = {"class_path": data_options}  # a text alone would be the name of another configuration, too
    try:
        parser.set_defaults({"data": data_options})
    except (AttributeError, ImportError) as error:
        raise UsageError(f"the data of {config}: class not found ({error}): name another with --data") from error


def _is_of_package(class_path: str) -> bool:
    return class_path.startswith("hsakd_pl.") or "." not in class_path  # a bare name is that of an imported class


def summary(export: "Export") -> str:
    """Return what was exported, and each file with its size, difference and accuracy."""
    from hsakd_pl.records.summary import aligned
    from hsakd_pl.records.text_table import text_table

    student = export.trained.student
    description = student.description
    name = student.network.name or type(student.network).__name__
    peer = f", peer {export.trained.peer}" if export.trained.peer else ""
    outputs = counted(len(description.class_names), "number" if student.embeds else "class")
    size = f"{outputs}, {description.image_size} x {description.image_size}"
    columns = ("file", "MB", "difference", "accuracy")
    files = text_table([dict(zip(columns, file.cells, strict=True)) for file in export.files])
    head = aligned(
        [
            ("student", f"{name}{peer}, {size}, from {export.trained.path}"),
            ("compared", f"over {export.checked}"),
        ]
    )
    parts = [head, files]
    if export.measurement is not None:
        parts.append(text_table([row.cells for row in export.measurement.rows]))
        parts.append(aligned([("measured", f"on {export.measurement.conditions}")]))
    return "\n".join([*parts, *export.notes, aligned([("folder", str(export.folder))])])
