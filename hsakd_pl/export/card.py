"""The model card of an exported student: what it is, how it was made, how good it is, and how it is used."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader

from hsakd_pl.export.checkpoint import Trained
from hsakd_pl.export.formats import ExportedFile
from hsakd_pl.files.weights import file_sha256
from hsakd_pl.networks.cost import multiply_adds
from hsakd_pl.records.formats import RESULT_FILE, TEST_FILE, read_row, read_test
from hsakd_pl.report.groups import groups

PAPER = "https://arxiv.org/abs/2107.13715"
NON_COMMERCIAL = "its photographs belong to their owners, and its terms allow non-commercial research and education"
# Name on the hub, and the terms, of the sets whose data modules with so many classes are really theirs
KNOWN_DATA = {
    ("CIFAR100DataModule", 100): ("cifar100", "CIFAR-100 (Krizhevsky 2009) comes without a licence; cite its author"),
    ("DigitsDataModule", 10): ("digits", "the Optical Recognition of Handwritten Digits (UCI, 1998) are CC BY 4.0"),
    ("ImageNetDataModule", 1000): ("imagenet-1k", f"ImageNet (ILSVRC2012): {NON_COMMERCIAL}"),
    ("STL10DataModule", 10): ("stl10", f"STL-10 was taken from ImageNet: {NON_COMMERCIAL}"),
    ("TinyImageNetDataModule", 200): ("tiny-imagenet", f"Tiny-ImageNet was taken from ImageNet: {NON_COMMERCIAL}"),
}


def results(trained: Trained) -> tuple[dict[str, Any], dict[str, float]]:
    """Read ``result.json`` and ``test.json`` beside a checkpoint: the row, and accuracies in percent by name.

    Only accuracies of this very checkpoint, and of the peer that was taken, are given.
    """
    path, prefix = trained.path, f"peer{trained.peer}_" if trained.peer else ""
    row = read_row(path.with_name(RESULT_FILE)) if path.with_name(RESULT_FILE).exists() else {}
    last, best = (row.get(key, 0) == trained.epoch for key in ("epochs", "best_epoch"))
    reached = row["metrics"].get(f"val/{prefix}acc") if last else row["best_val_acc"] if best and not prefix else None
    found = {} if reached is None else {"validation accuracy": 100 * reached}
    test = read_test(path.with_name(TEST_FILE)) or {}
    if test.get("sha256") == file_sha256(path):
        named = {"acc": "test accuracy", "acc_top5": "test accuracy, top-5"}
        found |= {name: 100 * test[prefix + key] for key, name in named.items() if prefix + key in test}
    return row, found


def model_card(trained: Trained, place: str, kind: str, checked: str, files: list[ExportedFile], data: str) -> str:
    """Write the card, Hugging Face's front matter included.

    ``place``: the folder's name; ``kind``: ``float`` or ``uint8``; ``checked``: the images of the verification;
    ``data``: name of the data module's class.
    """
    student, (row, accuracies) = trained.student, results(trained)
    known, protocol = student.description, row.get("protocol") or {}
    count, name = len(known.class_names), student.network.name or type(student.network).__name__
    unknown = "own", "their owner's terms hold, which hsakd_pl does not know"
    dataset, licence = KNOWN_DATA.get((data, count), unknown)
    title = f"{name} on {dataset}" if dataset != "own" else name
    options = protocol.get("options", {})
    facts = {
        "recipe": groups([{**row, "folder": "", "test": None}])[0].name if row.get("recipe") else None,
        "method": options.get("model.class_path"),
        "teacher": options.get("model.init_args.teacher"),
        "protocol": protocol.get("hash") and f"{protocol['hash']}, {protocol['epochs']} epochs, seed {row.get('seed')}",
        "validated on": protocol.get("validated_on"),
        **{each: f"{value:.2f} %" for each, value in accuracies.items()},
        "checkpoint": f"{trained.path.name}, epoch {trained.epoch}" if trained.epoch else trained.path.name,
        "peer": trained.peer and str(trained.peer),
        "parameters": f"{sum(each.numel() for each in student.parameters()):,}",
        "multiply-adds": f"{multiply_adds(student.network, known.image_size):,} an image",
        "classes": ", ".join(known.class_names[:10]) + (f" and {count - 10} more (config.json)" if count > 10 else ""),
    }
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, keep_trailing_newline=True
    )
    text = templates.get_template("card.md").render(
        **{"title": title, "name": name, "known": known, "kind": kind, "facts": facts, "place": place, "files": files},
        **{"margin": (known.resize - known.image_size) // 2, "checked": checked, "licence": licence, "paper": PAPER},
    )
    return f"---\n{yaml.safe_dump(front_matter(title, dataset, accuracies, files), sort_keys=False)}---\n\n{text}"


def front_matter(title: str, dataset: str, accuracies: dict[str, float], files: list[ExportedFile]) -> dict[str, Any]:
    """Give what Hugging Face's hub reads of a card; accuracies there are in [0, 1]."""
    measured = {**accuracies, **{f"test accuracy of {each.path.name}": each.accuracy for each in files}}
    known = {name: value for name, value in measured.items() if value is not None}
    metrics = [{"type": "accuracy", "name": name, "value": round(value / 100, 6)} for name, value in known.items()]
    front: dict[str, Any] = {"library_name": "hsakd_pl", "pipeline_tag": "image-classification"}
    front |= {"license": "other", "license_name": "terms-of-the-data", "license_link": "README.md#licence"}
    front |= {"tags": ["image-classification", "knowledge-distillation", "hsakd", "pytorch_model_hub_mixin"]}
    front |= {"metrics": ["accuracy"]}
    if metrics:
        task, data = {"type": "image-classification"}, {"name": dataset, "type": dataset}
        front["model-index"] = [{"name": title, "results": [{"task": task, "dataset": data, "metrics": metrics}]}]
    return front
