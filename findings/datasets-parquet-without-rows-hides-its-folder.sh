#!/usr/bin/env bash
# One parquet file without rows, as a filter or an empty shard leaves it behind, makes datasets refuse the whole folder
# of parquet files: an error about a batch size, which names neither the file nor the missing rows. pyarrow reads the
# same folder as one table.
# Most people expect an empty shard to add nothing, or an error that names it.
# datasets 5.2.0, pyarrow 26.0.1, 2026-12-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python datasets==5.2.0 pyarrow==26.0.1
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 env/bin/python - <<'PROGRAM'
import logging
from pathlib import Path

import datasets
import pyarrow as pa
from pyarrow import parquet

datasets.disable_progress_bars()
logging.disable(logging.ERROR)
Path("whole").mkdir()
Path("with_empty").mkdir()
table = pa.table({"text": ["a", "b", "c"], "label": [0, 1, 2]})
for name in ("whole", "with_empty"):
    parquet.write_table(table, f"{name}/train-00000-of-00002.parquet")
parquet.write_table(table, "whole/train-00001-of-00002.parquet")
parquet.write_table(table.slice(0, 0), "with_empty/train-00001-of-00002.parquet")


def causes(error):
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


print("datasets", datasets.__version__, " pyarrow", pa.__version__)
print("rows of the whole folder:", len(datasets.load_dataset("whole")["train"]))
print("rows that pyarrow reads next to an empty file:", len(parquet.read_table("with_empty")))
try:
    rows = len(datasets.load_dataset("with_empty")["train"])
except Exception as error:
    messages = [*causes(error)]
    print("datasets next to an empty file:", *messages, sep="\n    ")
    assert any("BatchSize must be greater than 0" in message for message in messages)
    assert not any("00001-of-00002" in message for message in messages)
else:
    raise SystemExit(f"the behaviour has changed: {rows} rows were read")
PROGRAM
