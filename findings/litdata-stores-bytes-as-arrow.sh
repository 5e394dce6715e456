#!/usr/bin/env bash
# LitData writes the same samples in one of two layouts: dictionaries of bytes, numbers and text as an Arrow file behind
# an empty chunk, if pyarrow happens to be installed, and as plain samples otherwise. The index looks the same. LitData
# of 2025 opens a set of the first kind, gives its length, and fails at the first sample. In both layouts, dataset[index]
# in random order decodes up to 256 samples of bytes for each one, and takes several times as long as for bytes that were
# wrapped in litdata.File, which are stored plainly by every version that has it.
# Most people expect that what optimize() stores depends on the samples alone, and that bytes are the plainest kind.
# litdata 0.2.76 and 0.2.58, pyarrow 26.0.1, torch 2.15.0, CPU, 2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python \
  torch==2.15.0 torchvision==0.29.2 litdata==0.2.76 pyarrow==26.0.1 pillow==13.0.0
env/bin/python -m uv pip install -q --python env/bin/python --no-deps --target older litdata==0.2.58
export LITDATA_DISABLE_VERSION_CHECK=1
cat > write.py <<'PROGRAM'
import json
import os
import random
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec

import litdata
from litdata.streaming import Cache

COUNT = 2000
random.seed(0)
pictures = [random.randbytes(2000) for _ in range(COUNT)]
kinds = {"bytes": lambda picture: picture, "File": lambda picture: litdata.File(bytes=picture)}
print("litdata", version("litdata"), " pyarrow", version("pyarrow") if find_spec("pyarrow") else "is not installed")
arrow = {}
for name, wrap in kinds.items():
    folder = f"{sys.argv[1]}-{name}"
    os.makedirs(folder)
    writer = Cache(folder, chunk_bytes=500_000)
    for number, picture in enumerate(pictures):
        writer[number] = {"image": wrap(picture), "label": number}
    writer.done()
    writer.merge()
    with open(f"{folder}/index.json") as file:
        index = json.load(file)
    with open(f"{folder}/{index['chunks'][0]['filename']}", "rb") as file:
        arrow[name] = file.read().endswith(b"LDARW01\0")
    dataset = litdata.StreamingDataset(folder)
    order = random.sample(range(COUNT), 500)
    start = time.perf_counter()
    for number in order:
        assert bytes(dataset[number]["image"]) == pictures[number]
    seconds = (time.perf_counter() - start) / len(order)
    kind = "an Arrow file" if arrow[name] else "plain samples"
    print(f"  {name}: {kind}, {index['config']['data_format']}, {1e6 * seconds:.0f} us for a sample in random order")
assert arrow == {"bytes": sys.argv[2] == "arrow", "File": False}, arrow
PROGRAM
cat > read.py <<'PROGRAM'
import litdata

for name in ("bytes", "File"):
    dataset = litdata.StreamingDataset(f"with-{name}")
    try:
        outcome = f"the label {dataset[5]['label']}"
        failed = False
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"[:100]
        failed = True
    print(f"  litdata {litdata.__version__}, {name}: {len(dataset)} samples, dataset[5] has {outcome}")
    assert failed == (name == "bytes"), name
PROGRAM
env/bin/python write.py with arrow
PYTHONPATH=older env/bin/python read.py
env/bin/python -m uv pip uninstall -q --python env/bin/python pyarrow
env/bin/python write.py without plain
echo "as described"
