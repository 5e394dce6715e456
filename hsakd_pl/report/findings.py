"""Lays out what a test found for a page: accuracies by head, mistakes, calibration, embedding and an example."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from hsakd_pl.report.charts import STYLES, Chart

HEADS = re.compile(r"(?:peer(\d+)_)?(?:branch(\d+)_)?(acc|class|joint)(_top5)?")
TOLD_APART = 10  # classes that have a colour and a shape of their own in an embedding


def heads_of(test: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Sort the accuracies of a test by head: its name -> ``class``, ``class_top5`` and ``joint``, as fractions."""
    heads: dict[str, dict[str, float]] = {}
    for match in filter(None, map(HEADS.fullmatch, sorted(test))):
        peer, branch, kind, top = match.groups("")
        name = (f"peer {peer}, " if peer else "") + (f"branch {branch}" if branch else "class head")
        heads.setdefault(name, {})[kind.replace("acc", "class") + top] = test[match[0]]
    return heads


def findings(details: dict[str, Any]) -> dict[str, Any]:
    """Lay out the content of a ``test_details.json``; of one that is malformed, the error is whatever Python raises."""
    names, bins = details["class_names"], [each for each in details["reliability"] if each]

    def name(label: int) -> str:
        return str(names[label] if names else label)

    return {
        "confused": [(name(true), name(predicted), count) for true, predicted, count in details["confused"]],
        "bins": bins,
        "fullest": max(count for count, *_ in bins),
        "unit": Chart([0, 0.2, 0.4, 0.6, 0.8, 1], [0, 20, 40, 60, 80, 100]),
        "embedding": details["embedding"] and _embedding(details["embedding"], details["confused"], name),
        "example": details["example"] and _example(details["example"], name),
    }


def _example(example: dict[str, Any], name: Callable[[int], str]) -> dict[str, Any]:
    rotated, label = example["transforms"] == "4 rotations", example["label"]
    captions = [f"{90 * m}°" if rotated else f"transformation {m}" for m in range(len(example["pictures"]))]
    return {
        "name": name(label),
        "pictures": [*zip(captions, example["pictures"], strict=True)],
        "heads": {
            head: [[(name(each), probability, each == label) for each, probability in row] for row in rows]
            for head, rows in example["heads"].items()
        },
    }


def _embedding(embedding: dict[str, Any], confused: list[Any], name: Callable[[int], str]) -> dict[str, Any]:
    """Lay out the points by class: of many classes the most confused have colours of their own, the others are grey."""
    points, labels = embedding["points"], embedding["labels"]
    classes = sorted(set(labels))
    if len(classes) > TOLD_APART:
        mistakes = Counter(dict.fromkeys(classes, 0))
        for true, predicted, count in confused:
            mistakes.update({true: count, predicted: count})
        classes = sorted(label for label, _ in mistakes.most_common(TOLD_APART) if label in labels)
    x, y = zip(*points, strict=True)
    chart = Chart(*((min(axis), max(axis) if max(axis) > min(axis) else min(axis) + 1) for axis in (x, y)))
    shown = [(style, name(label), {label}) for style, label in zip(STYLES, classes, strict=False)]
    if others := set(labels) - set(classes):
        shown.insert(0, (STYLES[0]._replace(colour="#bbbbbb"), f"{len(others)} other classes", others))
    drawn = [
        (
            style,
            title,
            chart.marks((point for point, label in zip(points, labels, strict=True) if label in of), style.shape),
        )
        for style, title, of in shown
    ]
    return {"method": embedding["method"], "images": len(points), "chart": chart, "classes": drawn}
