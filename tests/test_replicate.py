"""Test that the scripts of the measured results call commands that exist, first for the hours and then for the runs."""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hsakd_pl.commands import bench
from hsakd_pl.commands.bench.cells import select_cells

CHECKOUT = Path(__file__).parents[1]
RECORDER = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
"""


def calls_of(folder: Path, *tables: str) -> list[list[str]]:
    """Return the arguments with which ``replicate.sh`` calls Python for some tables."""
    shutil.copytree(CHECKOUT / "scripts", folder / "scripts")
    recorder = folder / "python"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    calls = folder / "calls"
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(recorder), "CALLS": str(calls), "TEACHER": "teacher.pth"}
    subprocess.run(["bash", folder / "scripts/replicate.sh", *tables], env=environment, check=True)
    return [json.loads(line) for line in calls.read_text().splitlines()]


@pytest.mark.parametrize("table", ["bench", "small", "budgets", "column"])
def test_replicate_plans_and_runs_a_bench(tmp_path: Path, table: str) -> None:
    *benches, comparison = calls_of(tmp_path, table)
    assert comparison[0].endswith("compare_runs.py")
    planned, run = benches[: len(benches) // 2], benches[len(benches) // 2 :]
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    for calls, is_plan in ((planned, True), (run, False)):
        assert calls
        for _, program, command, *words in calls:
            assert (program, command) == ("hsakd_pl", "bench")
            options, _ = parser.parse_known_args(words)
            bench.check_modes(options)
            assert options.dry_run is is_plan
            assert select_cells(options.tables, options.methods, options.pairs)[0]
