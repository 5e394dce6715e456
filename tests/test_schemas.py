"""Change every field of a run's files, one by one: readers refuse it in one line, or pages and tables can show it."""

import csv
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from hsakd_pl.errors import UsageError
from hsakd_pl.records.formats import read_details, read_history, read_row, read_test
from hsakd_pl.report.groups import groups
from hsakd_pl.report.page import write_page
from hsakd_pl.report.rows import collect
from hsakd_pl.report.table import as_text

VALUES = (None, True, -1, 0, 1.5, 10**400, 1e300, "x", "", "\ud800", [], {}, [[]], [None], {"x": 1}, {"\ud800": []})
RESULT = {
    "recipe": None,
    "config": ["a.yaml"],
    "seed": 0,
    "data_seed": None,
    "finished": True,
    "epochs": 2,
    "steps": 4,
    "last_val_step": 4,
    "last_val_acc": 0.5,
    "best_val_acc": 0.5,
    "best_epoch": 1,
    "weights_digest": "ab",
    "best_weights_digest": "cd",
    "metrics": {"val/acc": 0.5, "train/loss": None},
    "protocol": {
        "hash": "0123456789ab",
        "options": {"model.init_args.lr": 0.1},
        "limited": {"trainer.limit_val_batches": 2},
        "epochs": 2,
        "data": {"test": {"fingerprint": "ef", "classes": 2, "images": 8, "pictures": "i"}},
        "teacher_acc": 0.7,
        "teacher_sha256": "kl",
        "mine_sha256": "mn",
        "precision": "32-true",
    },
    "seconds": 1.5,
    "device_hours": 0.1,
    "images_per_second": 100.0,
    "device": "CPU",
    "devices": 1,
    "versions": {"torch": "2.9"},
    "commit": None,
    "changes": [{"option": "lr", "from": 1, "to": None, "epoch": 1, "step": 2}],
}
TEST = {
    "format": 2,
    "checkpoint": "last.ckpt",
    "epoch": 2,
    "sha256": "00",
    "weights_digest": "ab",
    "split": "test",
    "data": "ef",
    "images": 8,
    "split_images": 8,
    "limited": {},
    "acc": 0.5,
    "acc_top5": 0.9,
    "branch1_joint": 0.25,
    "peer1_acc": 0.5,
    "nll": 1.0,
    "ece": 0.1,
    "peer1_nll": 1.0,
    "ensemble": {"all_heads": {"acc": 0.5, "nll": 1.0, "ece": 0.1, "multiply_adds": 1000}},
    "early_exit": [{"threshold": 0.5, "acc": 0.5, "multiply_adds": 500, "left": [0.5, 0.5]}],
    "cascade": [{"threshold": 0.5, "acc": 0.5, "multiply_adds": 500, "left": [0.5, 0.5]}],
    "seconds": 1.0,
    "device": "CPU",
    "devices": 1,
    "precision": "32-true",
    "versions": {"torch": "2.9"},
}
DETAILS = {
    "confused": [[0, 1, 3]],
    "reliability": [[8, 0.5, 0.5], None],
    "embedding": {"method": "PCA", "points": [[0.5, 1.0], [2.0, 3.0]], "labels": [0, 1]},
    "example": {
        "label": 1,
        "transforms": "4 rotations",
        "pictures": ["QQ=="],
        "heads": {"class head": [[[1, 0.75], [0, 0.25]]]},
    },
    "class_names": ["cat", "dog"],
}
FILES: dict[str, Any] = {"result.json": RESULT, "test.json": TEST, "test_details.json": DETAILS}
READERS: dict[str, Callable[[Path], Any]] = {
    "result.json": read_row,
    "test.json": read_test,
    "test_details.json": read_details,
    "metrics.csv": read_history,
}
HISTORY = "epoch,step,train/loss,val/acc\n1,2,1.5,0.5\n2,4,1.25,0.75\n"


def places(content: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of a content but the whole."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, entry in entries:
        yield (key,)
        if isinstance(entry, dict | list):
            yield from ((key, *path) for path in places(entry))


def changed(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    content = deepcopy(content)
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return content


def without(content: Any, place: tuple[Any, ...]) -> Any:
    content = deepcopy(content)
    part = content
    for key in place[:-1]:
        part = part[key]
    del part[place[-1]]
    return content


def write(folder: Path, **replaced: Any) -> Path:
    """Write the files of a run."""
    folder.mkdir(exist_ok=True)
    for name, content in (FILES | replaced).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "metrics.csv").write_text(HISTORY)
    return folder


def report(folder: Path) -> str:
    """Return the table of a run in two formats, and its page."""
    table = groups(collect(folder))
    texts = [as_text(table, table_format) for table_format in ("table", "csv")]
    page = folder.parent / "page.html"
    write_page(table, page)
    return "\n".join([*texts, page.read_text()])


@pytest.mark.parametrize("name", FILES)
def test_field_of_another_type_is_refused_or_shown(name: str, tmp_path: Path) -> None:
    """Change each field to each value, and leave each out; a page is drawn from what a reader accepts."""
    folder = write(tmp_path / "run")
    report(folder)
    original = FILES[name]
    path = folder / name
    messages = []
    for place in places(original):
        variants = [changed(original, place, value) for value in VALUES]
        accepted = 0
        for variant in [*variants, without(original, place)]:
            path.write_text(json.dumps(variant))
            try:
                READERS[name](path)
            except UsageError as error:
                messages.append(str(error))
                continue
            accepted += 1
            if accepted == 1:  # drawing a page takes long
                report(folder)
    assert len(messages) > 100
    assert all(str(path) in message and message.isprintable() for message in messages)


UNREADABLE = {
    "too deep": "[" * 100_000,
    "an object too deep": '{"a":' * 100_000,
    "too deep but complete": "[" * 3000 + "]" * 3000,
    "not a number": '{"seconds": NaN}',
    "infinite": '{"seconds": 1e400}',
    "a long integer": '{"seconds": ' + "9" * 5000 + "}",
    "a list": "[]",
    "null": "null",
    "cut": '{"seconds": ',
    "empty": "",
    "zeros": "\0" * 9,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", UNREADABLE)
def test_file_that_is_not_json_of_a_run_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(UNREADABLE[kind])
    if name == "test.json" and kind == "a long integer":
        path.write_text('{"format": 2, "seconds": ' + "9" * 5000 + "}")
    with pytest.raises(UsageError) as refusal:
        READERS[name](path)
    assert name in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "cell", ["x", "nan", "inf", "1e400", "-1", "[]", '"1', "1,2,3,4,5,6", "", "9" * 200_000], ids=lambda cell: cell[:9]
)
@pytest.mark.parametrize("column", ["epoch", "step"])
def test_history_with_another_epoch_or_step_is_refused(cell: str, column: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,epoch\n1,{cell}\n" if column == "epoch" else f"epoch,step\n1,{cell}\n")
    if column == "step" and cell == "":
        assert read_history(path) == [{"epoch": 1.0}]
        return
    with pytest.raises(UsageError, match=r"metrics\.csv"):
        read_history(path)


@pytest.mark.parametrize("cell", ["nan", "inf", "1e400", "1e300", "-1e300", "5e-324", "0"])
def test_history_of_any_numbers_can_be_drawn(cell: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "metrics.csv").write_text(f"epoch,train/loss,val/acc\n1,{cell},{cell}\n2,1,0.5\n")
    report(folder)
    (folder / "metrics.csv").write_text(f"epoch,train/loss,val/acc\n1,{cell},{cell}\n")
    report(folder)


def test_long_history_is_read(tmp_path: Path) -> None:
    """A run of the paper that logs every step has more than ten million bytes."""
    path = tmp_path / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", *(f"metric{number:02}" for number in range(10))])
        line = ["1", "1", *["0." + "1" * 800] * 10]
        writer.writerows([line] * 1300)
    assert path.stat().st_size > 10_000_000
    assert len(read_history(path)) == 1300
