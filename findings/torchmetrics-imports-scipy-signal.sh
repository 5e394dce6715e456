#!/usr/bin/env bash
# Where SciPy is installed, `import pytorch_lightning` loads scipy.signal with 500 modules of SciPy, about 70 MiB and a
# second, because torchmetrics gives scipy.signal back a name, `hamming`, that SciPy has removed and that a metric of
# speech asks for. No metric is used. Where SciPy is not installed, nothing is missed.
# Most people expect a library of metrics to import SciPy with the metric that needs it.
# torchmetrics 1.9.0, pytorch-lightning 2.6.6, scipy 1.17.1, Linux, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python torch==2.15.0 pytorch-lightning==2.6.6 torchmetrics==1.9.0
cat >cost.py <<'PROGRAM'
import sys
import time

import torch


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


before, start = resident(), time.process_time()
import pytorch_lightning

loaded = sum(name.startswith("scipy.") for name in sys.modules)
print(f"{time.process_time() - start:.1f} s, {resident() - before:.0f} MiB, {loaded} modules of SciPy")
if loaded:
    import scipy.signal

    print("scipy.signal.hamming is that of", scipy.signal.hamming.__module__)
    assert "scipy.signal" in sys.modules and scipy.signal.hamming is scipy.signal.windows.hamming
sys.exit(loaded < 300)
PROGRAM
echo "without SciPy:"
if env/bin/python cost.py; then exit 1; fi
env/bin/python -m uv pip install -q --python env/bin/python scipy==1.17.1
echo "with SciPy:"
env/bin/python cost.py
