#!/usr/bin/env bash
# Repeats tables of RESULTS.md: scripts/replicate.sh TABLE..., of comparison, bench, small, budgets, precision, mutual, column.
# Says first how many hours the runs take on this machine, continues after an interruption, and at the end compares them
# with those of results/. EPOCHS=1 trains for one epoch only, whose loss is compared. Takes SEEDS, TEACHER and PYTHON as
# scripts/results.sh does; the runs are in OUT, by default runs/replicated.
set -euo pipefail
cd "$(dirname "$0")/.."
if (($# == 0)); then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 2
fi
export REPEAT=1 OUT=${OUT:-runs/replicated}${EPOCHS:+/epochs$EPOCHS}
PLAN=--dry-run scripts/results.sh "$@"
scripts/results.sh "$@"
"${PYTHON:-.venv/bin/python}" scripts/compare_runs.py results "$OUT"
