"""Try many mutants: ``python tests/fuzz/run.py --inputs 2000 [--reader NAME] [--seed 0]`` prints one line per reader.

Each failing mutant is written to its own folder below ``--failures``, with a report; the exit status is then 1.
"""

import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
TESTS = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(TESTS)]
sys.path.append(str(TESTS.parent))

import hsakd_pl  # noqa: E402
from fuzz.isolation import examine, summary  # noqa: E402
from fuzz.mutations import write_files  # noqa: E402
from fuzz.readers import READERS  # noqa: E402


def main() -> None:
    """Run the command."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000, help="number of mutants of each reader")
    parser.add_argument("--reader", choices=READERS, action="append", help="run only this reader; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant, to repeat one")
    parser.add_argument("--seconds", type=float, default=20, help="time limit of a mutant")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"), help="folder to write failures into")
    options = parser.parse_args()
    print(f"{Path(str(hsakd_pl.__file__)).parent}, seed {options.seed}", flush=True)
    failed = False
    for name in options.reader or READERS:
        outcomes = []
        for report in (options.failures / name).glob("*/why.txt"):  # of an earlier call
            shutil.rmtree(report.parent)
        with tempfile.TemporaryDirectory() as scratch:
            inputs = range(options.first, options.first + options.inputs)
            for outcome in examine(name, inputs, options.seed, options.seconds, Path(scratch)):
                outcomes.append(outcome)
                if outcome.verdict == "fault":
                    failed = True
                    mutant = READERS[name].mutant(options.seed, outcome.index, name)
                    folder = options.failures / name / str(outcome.index)
                    write_files(folder / "input", mutant.files)
                    (folder / "why.txt").write_text(f"{mutant.name!r}\n{outcome.why}\n")
        print(summary(name, outcomes), flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
