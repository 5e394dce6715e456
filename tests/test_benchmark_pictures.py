"""Test the measurements of pictures on their way into batches, with few and small files."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import pictures
from benchmarks.__main__ import main


def rows(printed: str) -> dict[str, list[str]]:
    """Return the numbers of a printed table by the name of the row."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {name: numbers for name, *numbers in lines[1:]}


def test_crops_are_measured_in_turns_with_torchvision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        Image.linear_gradient("L").convert("RGB").save(tmp_path / f"{number}.jpg")
    main(["pictures", "crops", "--jpegs", str(tmp_path), "--rounds", "2"])
    measured = rows(capsys.readouterr().out)
    assert len(measured) == 4
    assert measured[pictures.OURS][1:] == ["1.00", "1.00 to 1.00"]
    assert all(float(milliseconds) > 0 for milliseconds, *_ in measured.values())


def test_listing_is_measured_in_turns_with_scandir(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: code for name, code in pictures.LISTINGS.items() if name.startswith(("os.", pictures.OURS))}
    del few[pictures.FULL_START]
    monkeypatch.setattr(pictures, "LISTINGS", few)
    main(["pictures", "listing", "--files", "40", "--classes", "4", "--rounds", "1"])
    assert rows(capsys.readouterr().out).keys() == few.keys()


def test_missing_jpegs_end_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--jpegs", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            main(["pictures", "crops", *words])
        assert "--jpegs" in capsys.readouterr().err
