"""A recipe over several seeds: ``python -m hsakd_pl.sweep --seeds 0-2 --config FILE [options of fit]``.

Seed k runs in the folder ``seed<k>`` inside the recipe's. Seeds that have a result are left as they are, interrupted
ones resume. One seed runs in this process, as in a task of a SLURM array; several run one after the other.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

from hsakd_pl.cli import main
from hsakd_pl.errors import UsageError
from hsakd_pl.report import FILE, show


def parse_seeds(text: str) -> list[int]:
    """``"0-2"`` -> [0, 1, 2], ``"0,5"`` -> [0, 5]; ValueError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise ValueError(f"no seed in {text}")
    return seeds


def folder_of(options: list[str]) -> Path:
    """Where these options of ``fit`` put a run; UsageError if they do not say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", action="append", type=Path, default=[])
    parser.add_argument("--trainer.default_root_dir", dest="folder", type=Path)
    named = parser.parse_known_args(options)[0]
    folder = named.folder
    for path in reversed(named.config):
        config = yaml.safe_load(path.read_text()) or {}
        folder = folder or (config.get("trainer") or {}).get("default_root_dir")
    if folder is None:
        raise UsageError("a sweep needs a folder: set --trainer.default_root_dir")
    return Path(folder)


def run_seed(seed: int, options: list[str]) -> None:
    """Train with one seed, from where an earlier attempt stopped."""
    folder = folder_of(options) / f"seed{seed}"
    if (folder / FILE).exists():
        print(f"seed {seed} has a result: {folder / FILE}")
        return
    resume = ["--ckpt_path", "last"] if (folder / "last.ckpt").exists() else []
    main(["fit", *options, "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), *resume])


def sweep(args: list[str] | None = None) -> None:
    """Run the command on ``args`` (by default those of the process)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, required=True, help="0-4, or 0,7,9")
    arguments, options = parser.parse_known_args(args)
    try:
        if len(arguments.seeds) == 1:
            return run_seed(arguments.seeds[0], options)
        for seed in arguments.seeds:
            subprocess.run([sys.executable, "-m", "hsakd_pl.sweep", "--seeds", str(seed), *options], check=True)
        show(folder_of(options))
    except (UsageError, OSError, yaml.YAMLError) as mistake:
        parser.error(str(mistake))
    except subprocess.CalledProcessError as failure:
        sys.exit(failure.returncode)  # the run has said why


if __name__ == "__main__":
    sweep()
