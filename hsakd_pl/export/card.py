"""Write the model card of an exported student: its origin, accuracy, use, files and licence."""

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FileSystemLoader

from hsakd_pl.data import bands, picture
from hsakd_pl.errors import counted, require
from hsakd_pl.export.calibration import Calibration
from hsakd_pl.export.checkpoint import Trained
from hsakd_pl.export.formats import ExportedFile
from hsakd_pl.export.measure import Measurement
from hsakd_pl.export.student import Student
from hsakd_pl.files.escaping import for_markdown
from hsakd_pl.files.weights import weights_digest
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.recipes.data_sets import PUBLISHED_DATA
from hsakd_pl.records.formats import RESULT_FILE, TEST_FILE, for_weights, read_row, read_test
from hsakd_pl.records.measured import checkpoint_name, fingerprint_of, is_validated, reasons_against, validated_in_part
from hsakd_pl.report.groups import groups

LISTED_CLASSES = 10
COUNTED = "of convolutions and matrix products; norms, activations and additions do not count"
PAPER = "https://arxiv.org/abs/2107.13715"
NON_COMMERCIAL = "its photographs belong to their owners, and its terms allow non-commercial research and education"
# Name on the hub and licence of data sets, by data module and number of classes (a subset is another data set)
DATASETS = {
    ("CIFAR100DataModule", 100): ("cifar100", "CIFAR-100 (Krizhevsky 2009) comes without a licence; cite its author"),
    ("DigitsDataModule", 10): ("digits", "the Optical Recognition of Handwritten Digits (UCI, 1998) are CC BY 4.0"),
    ("ImageNetDataModule", 1000): ("imagenet-1k", f"ImageNet (ILSVRC2012): {NON_COMMERCIAL}"),
    ("STL10DataModule", 10): ("stl10", f"STL-10 was taken from ImageNet: {NON_COMMERCIAL}"),
    ("TinyImageNetDataModule", 200): ("tiny-imagenet", f"Tiny-ImageNet was taken from ImageNet: {NON_COMMERCIAL}"),
}


LICENCE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # identifiers of the hub
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Hub(NamedTuple):
    """Metadata of a model on the Hugging Face Hub that its author states.

    Args:
        licence: identifier of the licence, None for the terms of the data.
        base_model: id of the model that the weights started from, None for that of timm's weights, if it is one.
    """

    licence: str | None = None
    base_model: str | None = None

    def check(self) -> None:
        """Raise UsageError for text that the hub would refuse."""
        if self.licence is not None:
            valid = LICENCE_NAME.fullmatch(self.licence) is not None
            require(valid, "license", self.licence, "an identifier of the Hugging Face Hub, such as apache-2.0")
        if self.base_model is not None:
            valid = HUB_ID.fullmatch(self.base_model) is not None
            require(valid, "base_model", self.base_model, "the id of a model on the Hugging Face Hub, OWNER/NAME")


def results(trained: Trained) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the row in ``result.json`` next to a checkpoint, and accuracies in percent by name.

    The accuracies, of ``result.json`` and ``test.json``, are those of this checkpoint and of the exported peer.
    """
    path = trained.path
    peer_prefix = f"peer{trained.peer}_" if trained.peer else ""
    row: dict[str, Any] = {}
    if path.with_name(RESULT_FILE).exists():
        row = read_row(path.with_name(RESULT_FILE))
    name = checkpoint_name(row, trained.digest, trained.epoch)
    if name is None and row.get("finished", True):
        row = {}  # of another run
    measured: dict[str, float | None] = {}
    if name == "last" and is_validated(row) and not validated_in_part(row):
        measured["validation accuracy"] = row.get("metrics", {}).get(f"val/{peer_prefix}acc")
    elif name == "best" and not peer_prefix and not validated_in_part(row):
        measured["validation accuracy"] = row["best_val_acc"]
    for file_name in (for_weights(TEST_FILE, trained.digest), TEST_FILE):
        test = read_test(path.with_name(file_name)) or {}
        is_of_weights = test.get("weights_digest") == trained.digest
        if test and not reasons_against(test, is_of_weights, fingerprint_of(row)):
            measured["test accuracy"] = test.get(f"{peer_prefix}acc")
            measured["test accuracy, top-5"] = test.get(f"{peer_prefix}acc_top5")
    accuracies = {name: 100 * accuracy for name, accuracy in measured.items() if accuracy is not None}
    return row, accuracies


def model_card(
    trained: Trained,
    measured: tuple[dict[str, Any], dict[str, float]],
    folder_name: str,
    input: str,
    checked: str,
    files: list[ExportedFile],
    data_class: str,
    measurement: Measurement | None = None,
    notes: Sequence[str] = (),
    calibration: Calibration | None = None,
    hub: Hub | None = None,
) -> str:
    """Return the model card as Markdown, with Hugging Face's front matter.

    Args:
        trained: the student.
        measured: return value of :func:`results`.
        folder_name: name of the exported folder.
        input: input of the graphs, ``float`` or ``uint8``.
        checked: images that the files were compared on, in words.
        files: exported files.
        data_class: name of the data module's class.
        measurement: accuracy and speed of the graphs, if they were measured.
        notes: further sentences about the files.
        calibration: temperature and early exits, if they were chosen.
        hub: fields for the hub that the author states.
    """
    hub = hub or Hub()
    row, accuracies = measured
    student = trained.student
    description = student.description
    name = student.network.name or type(student.network).__name__
    is_rgb = description.channels == 3
    title = name
    dataset = "own"
    licence = "hsakd_pl does not know them, ask the owner of the images"
    if (data_class, len(description.class_names)) in DATASETS and not is_subset(row, data_class):
        dataset, licence = DATASETS[data_class, len(description.class_names)]
        title = f"{name} on {dataset}"
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, keep_trailing_newline=True
    )
    templates.filters["markdown"] = for_markdown
    templates.filters["quoted"] = json.dumps
    text = templates.get_template("card.md").render(
        title=title,
        name=name,
        description=description,
        channels="" if is_rgb else f" and {counted(description.channels, 'channel')}",
        picture='"picture.jpg"' if is_rgb else f'"picture.png", channels={description.channels}',
        embeds=student.embeds,
        input=input,
        facts=facts(trained, row, accuracies),
        measurement=measurement,
        notes=notes,
        calibration=calibration,
        folder_name=folder_name,
        files=files,
        reader=picture_reader(description.channels),
        checked=checked,
        licence=licence,
        stated_licence=hub.licence,
        paper=PAPER,
    )
    if hub.base_model is None:
        hub = hub._replace(base_model=base_model_of(row))
    task = "image-feature-extraction" if student.embeds else "image-classification"
    metadata = front_matter(title, dataset, validation_split(row), accuracies, files, hub, task)
    front = yaml.safe_dump(metadata, sort_keys=False)
    return f"---\n{front}---\n\n{text}"


def validation_split(row: dict[str, Any]) -> str:
    """Return the split whose images validated a run: ``validation``, or ``test`` where none were held out."""
    return "test" if (row.get("protocol") or {}).get("validated_on") == "test split" else "validation"


def base_model_of(row: dict[str, Any]) -> str | None:
    """Return the hub's id of the weights that a run started from, if timm published them."""
    options = (row.get("protocol") or {}).get("options") or {}
    network = options.get("model.init_args.network")
    if options.get("model.init_args.weights") != "pretrained" or not str(network).startswith("timm:"):
        return None
    try:
        import timm
    except ImportError:
        return None
    name = str(network).removeprefix("timm:").partition("@")[0]
    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is None or not published.architecture:
        return None
    return f"timm/{published.architecture}" + (f".{published.tag}" if published.tag else "")


def is_subset(row: dict[str, Any], data_class: str) -> bool:
    """Return True if a run records other data than the whole data set of its data module."""
    data_set = PUBLISHED_DATA.get(data_class.removesuffix("DataModule"))
    facts = (row.get("protocol") or {}).get("data") or {}
    if data_set is None:
        return False
    return any(data_set.difference_of(split, facts[split]) for split in data_set.images if split in facts)


def picture_reader(channels: int) -> str:
    """Return the code that reads pictures of a number of channels for ``predict``, which needs only Pillow."""
    _, _, code = inspect.getsource(picture).partition('"""\n\n')
    if channels == 3:
        return code.strip()
    _, _, code_of_bands = inspect.getsource(bands).partition("tiff_tags, upright_rgb\n\n")
    return f"{code.strip()}\n\n\n{code_of_bands.strip()}"


def facts(trained: Trained, row: dict[str, Any], accuracies: dict[str, float]) -> dict[str, str | None]:
    """Return the rows of the card's first table by name; None for what is not known."""
    student = trained.student
    class_names = student.class_names
    protocol = row.get("protocol") or {}
    options = protocol.get("options", {})
    recipe = None
    if row.get("recipe"):
        recipe = groups([row | {"folder": "", "test": None}])[0].name
    training = None
    if protocol.get("hash"):
        training = f"{protocol['hash']}, {length_of(row)}, seed {row.get('seed')}"
    listed_classes = ", ".join(class_names[:LISTED_CLASSES])
    if len(class_names) > LISTED_CLASSES:
        listed_classes += f" and {len(class_names) - LISTED_CLASSES} more (config.json)"
    origin = trained.path.name
    if trained.epoch:
        origin += f", epoch {trained.epoch}"
    parameters = sum(parameter.numel() for parameter in student.parameters())
    return {
        "recipe": recipe,
        "method": options.get("model.class_path"),
        "teacher": options.get("model.init_args.teacher"),
        "protocol": training,
        "validated on": protocol.get("validated_on"),
        **{name: _with_split(name, accuracy, row) for name, accuracy in accuracies.items()},
        "checkpoint": origin,
        "digest of the weights": weights_digest(student.state_dict()),
        "peer": str(trained.peer) if trained.peer else None,
        "parameters": f"{parameters:,}",
        "multiply-adds": cost_of(student),
        "classes": None if student.embeds else listed_classes,
    }


def _with_split(name: str, accuracy: float, row: dict[str, Any]) -> str:
    """Return an accuracy in words, with the images that it was measured on."""
    split = validation_split(row) if name.startswith("validation") else "test"
    images = "images held out of the training split" if split == "validation" else "the test split"
    return f"{accuracy:.2f} %, on {images}"


def cost_of(student: Student) -> str | None:
    """Return the multiply-adds of a student in words, or None for one that fails for one image alone."""
    try:
        return f"{multiply_adds(student.network, student.image_size):,} per image, {COUNTED}"
    except Exception:  # a network can raise anything; the export has logged it
        return None


def length_of(row: dict[str, Any]) -> str:
    """Return the planned length of a run: its epochs, or its optimizer steps if epochs are not limited."""
    epochs = row["protocol"].get("epochs")
    if epochs is not None:
        return counted(epochs, "epoch")
    steps = row.get("planned_steps")
    return "unlimited epochs" if steps is None else counted(steps, "step")


def front_matter(
    title: str,
    dataset: str,
    validation: str,
    accuracies: dict[str, float],
    files: list[ExportedFile],
    hub: Hub,
    task: str,
) -> dict[str, Any]:
    """Return the metadata that Hugging Face's hub reads from a card; accuracies there are in [0, 1].

    Accuracies on validation images and on test images are results of their own, each of which names its split.
    """
    measured: dict[str, float | None] = dict(accuracies)
    measured |= {f"test accuracy of {file.path.name}": file.accuracy for file in files}
    by_split: dict[str, list[dict[str, Any]]] = {}
    for name, accuracy in measured.items():
        if accuracy is not None:
            split = validation if name.startswith("validation") else "test"
            metric = {"type": "accuracy", "name": name, "value": round(accuracy / 100, 4)}
            by_split.setdefault(split, []).append(metric)
    front: dict[str, Any] = {"library_name": "hsakd_pl", "pipeline_tag": task}
    if hub.licence is None:
        front |= {"license": "other", "license_name": "terms-of-the-data", "license_link": "README.md#licence"}
    else:
        front["license"] = hub.licence
    if hub.base_model is not None:
        front["base_model"] = hub.base_model
    front["tags"] = [task, "knowledge-distillation", "hsakd", "pytorch_model_hub_mixin"]
    front["metrics"] = ["accuracy"]
    if by_split:
        results_by_split = [
            {
                "task": {"type": task},
                "dataset": {"name": dataset, "type": dataset, "split": split},
                "metrics": metrics,
            }
            for split, metrics in by_split.items()
        ]
        front["model-index"] = [{"name": title, "results": results_by_split}]
    return front
