"""Attack the program: ``python tests/attacks NAME --count 30`` prints what went wrong; the exit status is then 1.

``interruptions``: signals at random moments of predict, export, report and bench, ``count`` of each. ``writers``:
``count`` pairs of each command started together. ``fields``: each field of a run's files gets ``count`` values of other
types. ``filesystems``: folders that cannot be synced, files that cannot be locked. ``ranks``: two processes with
different data.
"""

import gc
import os
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads cannot be forked
TESTS = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(TESTS)]
sys.path.append(str(TESTS.parent))

from attacks import fields, filesystems, interruptions, ranks, writers  # noqa: E402

ATTACKS = {
    "interruptions": interruptions.attack,
    "writers": writers.attack,
    "fields": fields.attack,
    "filesystems": filesystems.attack,
    "ranks": ranks.attack,
}


def main() -> None:
    """Run the command."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ATTACKS)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    gc.freeze()  # otherwise a collection in a child copies all imported objects
    since = time.monotonic()
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        for fault in ATTACKS[options.name](Path(name), options.count, options.seed):
            faults += 1
            print(f"FAULT {fault}", flush=True)
    print(f"{options.name}: {faults} faults, {time.monotonic() - since:.0f} s")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
