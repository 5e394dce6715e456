"""The parts of a page about a test: accuracies by head, mistakes, calibration, embedding and an example."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hsakd_pl.errors import counted
from hsakd_pl.report.charts import STYLES, Chart, Style

HEADS = re.compile(r"(?:peer(\d+)_)?(?:branch(\d+)_)?(acc|class|joint)(_top5)?")
DISTINCT_CLASSES = 10  # classes of an embedding with a colour and a shape of their own
GREY = "var(--others)"  # of page.css


def heads_of(test: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Sort the accuracies of a test by head: its name -> ``class``, ``class_top5`` and ``joint``, as fractions."""
    heads: dict[str, dict[str, float]] = {}
    for field in sorted(test):
        match = HEADS.fullmatch(field)
        if match is None:
            continue
        peer, branch, kind, top = match.groups("")
        name = f"branch {branch}" if branch else "class head"
        if peer:
            name = f"peer {peer}, {name}"
        heads.setdefault(name, {})[kind.replace("acc", "class") + top] = test[field]
    return heads


def findings(details: dict[str, Any]) -> dict[str, Any]:
    """Arrange the content of a ``test_details.json``, as :func:`hsakd_pl.records.formats.read_details` returns it."""
    class_names = details["class_names"]
    bins = [full_bin for full_bin in details["reliability"] if full_bin]

    def name(label: int) -> str:
        return str(class_names[label] if class_names else label)

    return {
        "confused": [(name(true), name(predicted), count) for true, predicted, count in details["confused"]],
        "bins": bins,
        "fullest": max(count for count, *_ in bins),
        "unit": Chart([0, 0.2, 0.4, 0.6, 0.8, 1], [0, 20, 40, 60, 80, 100]),
        "embedding": details["embedding"] and _embedding(details["embedding"], details["confused"], name),
        "example": details["example"] and _example(details["example"], name),
    }


def _example(example: dict[str, Any], name: Callable[[int], str]) -> dict[str, Any]:
    is_rotated = example["transforms"] == "4 rotations"
    label = example["label"]
    count = len(example["pictures"])
    captions = [f"{90 * number}°" if is_rotated else f"transformation {number}" for number in range(count)]
    heads = {}
    for head, rows in example["heads"].items():
        heads[head] = [[(name(guess), probability, guess == label) for guess, probability in row] for row in rows]
    return {
        "name": name(label),
        "pictures": list(zip(captions, example["pictures"], strict=True)),
        "heads": heads,
    }


def _embedding(embedding: dict[str, Any], confused: list[Any], name: Callable[[int], str]) -> dict[str, Any]:
    """Arrange the points by class; of many classes the most confused have their own colours, the others are grey."""
    points = embedding["points"]
    labels = embedding["labels"]
    distinct = _distinct_classes(labels, confused)
    shown: list[tuple[Style, str, set[int]]] = [
        (style, name(label), {label}) for style, label in zip(STYLES, distinct, strict=False)
    ]
    others = set(labels) - set(distinct)
    if others:
        shown.insert(0, (STYLES[0]._replace(colour=GREY), counted(len(others), "other class"), others))
    x, y = zip(*points, strict=True)
    chart = Chart(_ends(x), _ends(y))
    classes = []
    for style, title, members in shown:
        positions = [point for point, label in zip(points, labels, strict=True) if label in members]
        classes.append((style, title, chart.marks(positions, style.shape)))
    return {"method": embedding["method"], "images": len(points), "chart": chart, "classes": classes}


def _distinct_classes(labels: Sequence[int], confused: list[Any]) -> list[int]:
    """Return all classes if they are few, otherwise those in the most frequent mistakes."""
    classes = sorted(set(labels))
    if len(classes) <= DISTINCT_CLASSES:
        return classes
    mistakes = Counter(dict.fromkeys(classes, 0))
    for true, predicted, count in confused:
        mistakes.update({true: count, predicted: count})
    return sorted(label for label, _ in mistakes.most_common(DISTINCT_CLASSES) if label in labels)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis, which differ."""
    low = min(values)
    high = max(values)
    return low, high if high > low else low + 1
