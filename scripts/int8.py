"""Measure what quantisation-aware training gains over static int8, for several seeds.

Each seed trains a student, exports it, and trains it on for a few epochs twice: under fake quantisation, and, as a
control, in float32. The accuracies are those of ``model.onnx`` and ``model.int8.onnx`` of the three exports on the test
split. Finished parts are skipped and interrupted ones resumed, so that the script can be started again at any time:

    python scripts/int8.py runs/int8 --seeds 3 --student "OPTIONS OF FIT" --tuning "OPTIONS OF FIT"

In the options of the tuning, {student} stands for the checkpoint of the student, from which it starts.
"""

import argparse
import json
import shlex
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hsakd_pl.cli.main import main as hsakd

AWARE = "--trainer.callbacks+=hsakd_pl.QuantizationAware"


def trained(folder: Path, seed: int, options: list[str]) -> dict[str, float]:
    """Train and export a student, unless that is done; return the accuracy in percent of each ONNX file."""
    record = folder / "export" / "export.json"
    if not record.exists():
        resume = ["--ckpt_path", "last"] if (folder / "last.ckpt").exists() else []
        where = ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
        hsakd(["fit", *options, *where, *resume])
        hsakd(["export", str(folder), "--formats", "onnx", "--int8"])
    rows: list[dict[str, Any]] = json.loads(record.read_text())["measured"]["rows"]
    return {row["file"]: 100 * row["accuracy"] for row in rows}


def of_seed(folder: Path, seed: int, student: list[str], tuning: list[str]) -> dict[str, float]:
    """Return the accuracies of one seed in percent, by what they are of."""
    run = folder / f"seed{seed}"
    before = trained(run / "student", seed, student)
    options = [option.format(student=run / "student" / "last.ckpt") for option in tuning]
    options += ["--model.init_args.weights", str(run / "student" / "last.ckpt")]
    aware = trained(run / "aware", seed, [*options, AWARE])
    control = trained(run / "control", seed, options)
    return {
        "student float32": before["model.onnx"],
        "student int8": before["model.int8.onnx"],
        "tuned in float32, float32": control["model.onnx"],
        "tuned in float32, int8": control["model.int8.onnx"],
        "tuned for int8, int8": aware["model.int8.onnx"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--student", required=True, help="options of fit that train the student")
    parser.add_argument("--tuning", required=True, help="options of fit that train it on")
    options = parser.parse_args()
    student, tuning = shlex.split(options.student), shlex.split(options.tuning)
    seeds = [of_seed(options.folder, seed, student, tuning) for seed in range(options.seeds)]
    print(f"| accuracy in % | {' | '.join(f'seed {seed}' for seed in range(options.seeds))} | mean | deviation |")
    print(f"|---|{'---|' * (options.seeds + 2)}")
    for name in seeds[0]:
        values = [accuracies[name] for accuracies in seeds]
        spread = f"{stdev(values):.2f}" if len(values) > 1 else "-"
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} | {mean(values):.2f} | {spread} |")


if __name__ == "__main__":
    main()
