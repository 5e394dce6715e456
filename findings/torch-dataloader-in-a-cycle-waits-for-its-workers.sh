#!/usr/bin/env bash
# A DataLoader with persistent workers that is part of a reference cycle, as one is that an object with a link to itself
# or to its trainer holds, waits about five seconds for each worker when it is collected: the queues are closed before
# the loader can tell its workers to end. Without the cycle the same loader ends at once. Nothing is printed, and a
# notebook, a sweep or a test suite that drops such objects stands still now and then.
# Most people expect that dropping a loader ends its workers at once, whoever else refers to it.
# torch 2.15.0, Linux, CPU, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.4.6
cat >program.py <<'PROGRAM'
import gc
import time

import torch
from torch.utils.data import DataLoader

WORKERS = 2


class Holder:
    pass


def seconds_to_drop(in_a_cycle):
    holder = Holder()
    holder.loader = DataLoader(range(8), num_workers=WORKERS, persistent_workers=True)
    assert len(list(holder.loader)) == 8
    if in_a_cycle:
        holder.itself = holder
    start = time.perf_counter()
    del holder
    gc.collect()
    return time.perf_counter() - start


if __name__ == "__main__":
    print("torch", torch.__version__)
    gc.collect()
    alone, cycle = seconds_to_drop(False), seconds_to_drop(True)
    print(f"dropped without a cycle: {alone:.1f} s, in a cycle: {cycle:.1f} s with {WORKERS} workers")
    assert cycle > alone + 4 * WORKERS
PROGRAM
env/bin/python program.py
