#!/usr/bin/env bash
# The workers of a DataLoader whose processes a fork server starts, as Python 3.14 does by default on Linux, go on
# existing after the main process was killed, with all their memory. A worker watches its parent, and that is the fork
# server, which lives as long as one of its processes. Forked workers end within ten seconds. The processes that are
# left have to be found and ended by hand, or the job's memory is not free.
# Most people expect the workers to end with the program that started them, as the watchdog in each of them promises.
# torch 2.15.0, Linux, CPU, Python 3.10 or newer with the start method set, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python torch==2.15.0 numpy==2.4.6
cat >run.py <<'PROGRAM'
import multiprocessing
import os
import signal
import sys

import torch
from torch.utils.data import DataLoader

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    batches = iter(DataLoader(range(64), batch_size=4, num_workers=2))
    next(batches)
    print(torch.__version__, *(worker.pid for worker in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
PROGRAM
alive_after() { # START-METHOD COUNT: that many workers are there half a minute after the main process was killed
  local version worker workers alive=0
  env/bin/python run.py "$1" >"$1" 2>/dev/null || true
  read -ra workers <"$1"
  version=${workers[0]}
  sleep 30
  for worker in "${workers[@]:1}"; do
    if kill -9 "$worker" 2>/dev/null; then alive=$((alive + 1)); fi
  done
  echo "torch $version, $1: $alive of $((${#workers[@]} - 1)) workers are alive after 30 s"
  [[ $alive -eq $2 ]]
}
alive_after fork 0
alive_after forkserver 2
