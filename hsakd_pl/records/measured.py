"""Decide which measurements count for a run: those of its last weights, on all images of its data.

Tables, pages, benches, sweeps and model cards all ask the functions of this module.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hsakd_pl.errors import counted
from hsakd_pl.records.formats import RESULT_FILE, TEST_FILE, Row, is_finished, read_row, read_test

# Limits under which a validation covers a part of its split
VALIDATION_LIMITS = ("trainer.limit_val_batches", "trainer.overfit_batches")


def reasons_against(test: Mapping[str, Any], is_of_weights: bool, data: str | None) -> list[str]:
    """Return why a test does not count for weights on a test split; an empty list if it does.

    Args:
        test: content of a ``test.json``.
        is_of_weights: whether it tested these weights.
        data: fingerprint of the test split; None if it is not known.
    """
    reasons = []
    if not isinstance(test.get("acc"), int | float):
        reasons.append("without an accuracy")
    if is_partial(test):
        reasons.append(coverage(test))
    if not is_of_weights:
        reasons.append(f"of other weights, {test.get('checkpoint')}")
    if data is not None and test.get("data") != data:
        reasons.append("on other data")
    return reasons


def is_partial(test: Mapping[str, Any]) -> bool:
    """Return whether a test covered a part of its split only."""
    split_images = test.get("split_images")
    if split_images is None or test.get("images") is None:
        return bool(test.get("limited"))
    return split_images != test["images"]  # a limit may be more than there is


def coverage(test: Mapping[str, Any]) -> str:
    """Return the images that a test covered, in words: ``4 of 1,000 images``."""
    images = test.get("images")
    split_images = test.get("split_images")
    covered = "an unknown number of images" if images is None else counted(images, "image")
    if split_images is not None and images is not None:
        return f"{images:,} of {counted(split_images, 'image')}"
    limits = ", ".join(f"{option} {value}" for option, value in (test.get("limited") or {}).items())
    return f"{covered}, {limits}" if limits else covered


def reasons_against_test_of(row: Row) -> list[str]:
    """Return why the test of a run does not count for it; an empty list if it does, or is missing.

    Args:
        row: content of ``result.json``, with the content of ``test.json`` as ``test``.
    """
    test = row.get("test")
    if not test:
        return []
    if not row.get("finished", True):
        return ["of an unfinished run"]
    return reasons_against(test, _is_of_last_weights(test, row), fingerprint_of(row))


def _is_of_last_weights(test: Mapping[str, Any], row: Row) -> bool:
    """Return whether a test is of a run's last weights; results of early versions only know their epoch."""
    field = "weights_digest" if "weights_digest" in row else "epoch"
    expected = row["weights_digest"] if "weights_digest" in row else row.get("epochs")
    return expected is not None and test.get(field) == expected


def fingerprint_of(row: Row) -> str | None:
    """Return the fingerprint of the test split that a run's protocol records, if it does."""
    data = (row.get("protocol") or {}).get("data") or {}
    return data["test"]["fingerprint"] if "test" in data else None


def test_accuracy(row: Row) -> float | None:
    """Return the test accuracy of a run's last weights, a fraction; None if there is none that counts."""
    if not row.get("test") or reasons_against_test_of(row):
        return None
    return row["test"]["acc"]


def is_tested(folder: Path) -> bool:
    """Return whether the ``test.json`` in the folder of a finished run counts for it.

    A test with the limits that the run's own configuration has for tests is as good as its next one.
    """
    test = read_test(folder / TEST_FILE)
    if test is None or not is_finished(folder / RESULT_FILE):
        return False
    row = read_row(folder / RESULT_FILE)
    planned_limit = (row.get("protocol") or {}).get("options", {}).get("trainer.limit_test_batches")
    if test.get("limited") == {"limit_test_batches": planned_limit}:
        test = test | {"limited": {}, "split_images": None}
    return not reasons_against_test_of(row | {"test": test})


def checkpoint_name(row: Row, digest: str, epoch: int | None) -> str | None:
    """Return the name of the run's checkpoint that has a digest: ``last``, ``best`` or None for neither.

    Of results of early versions, which have no digests, the number of the ``epoch`` decides.
    """
    if "weights_digest" in row:
        values = {"last": row["weights_digest"], "best": row.get("best_weights_digest")}
        expected: Any = digest
    else:
        values = {"last": row.get("epochs"), "best": row.get("best_epoch")}
        expected = epoch
    return next((name for name, value in values.items() if value is not None and value == expected), None)


def is_validated(row: Row) -> bool:
    """Return whether the last validation of a run is that of its last weights; early versions did not record it."""
    step = row.get("last_val_step", row.get("steps"))
    return step == row.get("steps")


def last_accuracy(row: Row) -> float | None:
    """Return the validation accuracy of a run's last weights, a fraction; None if only earlier ones were validated."""
    return row["last_val_acc"] if is_validated(row) else None


def validated_in_part(row: Row) -> bool:
    """Return whether the validations of a run covered a part of their split only."""
    limited = (row.get("protocol") or {}).get("limited") or {}
    return any(option in limited for option in VALIDATION_LIMITS)


def peer_accuracies(row: Row) -> list[float]:
    """Return the validation accuracies of the last weights of each peer, fractions; an empty list for one network."""
    metrics = (row.get("metrics") or {}) if is_validated(row) else {}
    accuracies = [metrics.get(f"val/peer{number}_acc") for number in range(1, len(metrics) + 1)]
    return [accuracy for accuracy in accuracies if accuracy is not None]


def ensemble_accuracy(row: Row) -> float | None:
    """Return the validation accuracy of the mean of the peers' logits, a fraction; None if it was not measured."""
    return (row.get("metrics") or {}).get("val/ensemble_acc") if is_validated(row) else None
