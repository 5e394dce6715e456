"""Tables for the terminal and what a JSON file says about the machine."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import hsakd_pl


def environment(device: torch.device) -> dict[str, Any]:
    """Where and with what a measurement was made."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "versions": {
            "hsakd_pl": hsakd_pl.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": version("pytorch_lightning"),
            "cuda": torch.version.cuda,
        },
        "commit": _commit(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _commit() -> str | None:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def number(value: float | None, digits: int = 1) -> str:
    """For a cell of a table; a dash for what could not be measured."""
    return "-" if value is None else f"{value:,.{digits}f}"


def mebibytes(count: float | None) -> str:
    """Bytes for a cell of a table."""
    return number(None if count is None else count / 2**20, 0)


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table: the first column is text, the others are numbers."""
    table = Table()
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", no_wrap=position > 0)
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(title, table, sep="\n")


LOOPS = {"plain": "plain PyTorch", "step": "bare loop", "fit": "main.py fit"}


def show_comparison(case: str, result: dict[str, Any]) -> None:
    """Print what :func:`benchmarks.compare.compare` found."""
    columns = ["loop", "ms a step", "quartiles", "images/s", "peak MiB", "host syncs", "first step, s", "speed-up"]
    rows = []
    for loop, name in LOOPS.items():
        found = result[loop]
        quartiles = found["ms_quartiles"]
        rows.append(
            [
                name,
                number(found["ms_per_step"]),
                "-" if quartiles is None else f"{quartiles[0]:,.1f}-{quartiles[2]:,.1f}",
                number(found["images_per_second"], 0 if found["images_per_second"] > 100 else 1),
                mebibytes(found["peak_memory_bytes"]),
                number(found["host_syncs_per_step"]),
                number(found["first_step_seconds"]),
                number(result.get(f"{loop}_times_as_fast", 1.0), 2),
            ]
        )
    show(case, columns, rows)


def show_breakdown(case: str, result: dict[str, Any]) -> None:
    """Print what :func:`benchmarks.breakdown.breakdown` found."""
    per_step = [LOOPS[loop] for loop in LOOPS]
    rows = [[name] for name in result["plain"]["milliseconds"]]
    for row in rows:
        row += [number(result[loop]["milliseconds"][row[0]], 2) for loop in LOOPS]
    sums = [sum(result[loop]["milliseconds"].values()) for loop in LOOPS]
    rows.append(["sum", *(number(each, 2) for each in sums)])
    rows.append(["kernels or operators a step", *(number(result[loop]["per_step"], 0) for loop in LOOPS)])
    shares = [result[loop]["idle_share"] for loop in LOOPS]
    rows.append(["device idle, %", *(number(None if share is None else 100 * share) for share in shares)])
    show(f"{case}: ms a step under the profiler", ["", *per_step], rows)


def show_growth(case: str, result: dict[str, Any]) -> None:
    """Print what :func:`benchmarks.growth.growth` found."""
    seconds = result["epoch_seconds"]
    rows = [
        ["batches an epoch", number(result["batches_per_epoch"], 0)],
        ["first epoch, s", number(seconds[0], 2)],
        ["other epochs, s", f"{min(seconds[1:]):.2f} to {max(seconds[1:]):.2f}"],
        ["their spread, %", number(result["spread_percent"])],
        ["spread of their ratio to the bare loop beside them, %", number(result["spread_over_bare_percent"])],
        ["memory growth from epoch 2 to the last, MiB", mebibytes(result["memory_growth_bytes"])],
        ["fit over the bare loop, %", number(result["fit_overhead_percent"])],
    ]
    show(f"{case}: {len(seconds)} epochs", ["", ""], rows)


def show_limit(result: dict[str, Any]) -> None:
    """Print what :func:`benchmarks.inputs.limit` found."""
    rows = [
        [f"loader, {result['workers']} workers", number(result["loader_images_per_second"])],
        ["step", number(result["step_images_per_second"])],
        ["the slower one limits", result["limit"]],
    ]
    show(f"ImageNet input beside {result['case']}", ["", "images/s"], rows)
