"""Test that data, predictions and reports walk through folders by the same rule."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hsakd_pl.data.walk import images_below
from hsakd_pl.errors import UsageError
from hsakd_pl.files.walk import walk
from hsakd_pl.report.rows import collect

ROW = {"config": ["a/one.yaml"], "epochs": 2, "last_val_acc": 0.7, "best_val_acc": 0.7}
ROW |= {"images_per_second": 100.0, "seconds": 10.0}


def found_by_report(folder: Path) -> list[str]:
    return [str(Path(row["folder"]).relative_to(folder)) for row in collect(folder)]


def found_by_data(folder: Path) -> list[str]:
    [images] = images_below(folder)
    return [str(Path(image).parent.relative_to(folder)) for image in images]


READERS = {"report": found_by_report, "data": found_by_data}
# The link's place below the folder, its target from the top, and what is found
LINKS = {
    "run": ("runs/linked", "elsewhere/one", ["a/own", "linked"]),
    "folder of runs": ("runs/linked", "elsewhere", ["a/own", "linked/one", "linked/two"]),
    "other name": ("runs/linked", "runs/a/own", ["a/own"]),
    "earlier in the alphabet": ("runs/0", "runs/a", ["a/own"]),
    "loop": ("runs/a/up", "runs", ["a/own"]),
    "parent": ("runs/a/up", ".", ["a/own"]),
    "hidden": ("runs/.linked", "elsewhere", ["a/own"]),
    "left by a system": ("runs/@eaDir", "elsewhere", ["a/own"]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", LINKS)
def test_links_are_followed_once_by_every_reader(tmp_path: Path, reader: str, kind: str) -> None:
    for name in ("runs/a/own", "elsewhere/one", "elsewhere/two"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(ROW))
        (folder / "0.png").touch()
    link, target, expected = LINKS[kind]
    (tmp_path / link).symlink_to(tmp_path / target)
    assert READERS[reader](tmp_path / "runs") == expected


def test_links_between_folders_end(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "a").symlink_to(tmp_path / "a")
    places = [Path(place).name for place, _ in walk(tmp_path / "start")]
    assert places == ["start", "a", "b"]


@pytest.mark.parametrize("read", [found_by_report, found_by_data])
def test_files_are_refused_in_place_of_folders(tmp_path: Path, read: Callable[[Path], list[str]]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be read"):
        read(tmp_path / "file")
