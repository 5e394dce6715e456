"""Run every reader briefly; ``python tests/fuzz/run.py`` runs longer."""

from pathlib import Path

import pytest
from PIL import Image

from fuzz.isolation import examine, summary
from fuzz.mutations import write_files
from fuzz.pictures import pictures
from fuzz.readers import READERS
from hsakd_pl.data.images import open_image
from hsakd_pl.errors import UsageError

INPUTS = 60
SECONDS = 120  # inputs take milliseconds, but machines may be slow


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_or_read_correctly(name: str, tmp_path: Path) -> None:
    outcomes = list(examine(name, range(INPUTS), 0, SECONDS, tmp_path))
    faults = {o.index: (READERS[name].mutant(0, o.index, name).name, o.why) for o in outcomes if o.verdict == "fault"}
    assert faults == {}, summary(name, outcomes)
    assert len(outcomes) == INPUTS and len({outcome.verdict for outcome in outcomes}) > 1


@pytest.mark.parametrize("name", [name for name in READERS if name != "images"])
def test_undamaged_seed_files_are_read(name: str, tmp_path: Path) -> None:
    for number, files in enumerate(READERS[name].seeds()):
        write_files(tmp_path / str(number), files)
        assert READERS[name].read(tmp_path / str(number))


@pytest.mark.parametrize("name", pictures())
def test_pictures_of_all_modes_are_read_correctly_or_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pictures()[name])
    if name in ("int32.tif", "float.tif"):  # the range of their values is undefined
        with pytest.raises(UsageError, match=name):
            open_image(str(tmp_path / name))
        return
    try:
        Image.open(tmp_path / name).load()
    except OSError:
        pytest.skip("this Pillow does not read back what it wrote")
    grey = open_image(str(tmp_path / name)).convert("L")
    counts = grey.histogram()
    assert 60 < sum(value * count for value, count in enumerate(counts)) / sum(counts) < 200
    assert sum(count > 0 for count in counts) >= 16 or name.startswith("1.")
