"""A short run of every reader; the long one is ``python tests/fuzz/run.py``."""

from pathlib import Path

import pytest

from fuzz.isolation import examine, summary
from fuzz.readers import READERS

INPUTS = 60
SECONDS = 120  # an input takes milliseconds; machines may be slow


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_or_read_right(name: str, tmp_path: Path) -> None:
    outcomes = list(examine(name, range(INPUTS), 0, SECONDS, tmp_path))
    faults = {o.index: (READERS[name].mutant(0, o.index, name).name, o.why) for o in outcomes if o.verdict == "fault"}
    assert faults == {}, summary(name, outcomes)
    assert len(outcomes) == INPUTS and len({outcome.verdict for outcome in outcomes}) > 1
