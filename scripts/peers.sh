#!/usr/bin/env bash
# Measures docs/peers.md: scripts/peers.sh [timm] [torchdistill] [lightly] [ultralytics] [hsakd], default all. Each
# package is installed with uv into an environment of its own below WORK, 6 GB each, and deleted after its turn, or kept
# and used again with KEEP=1. Versions are those of the page; with LATEST=1, the newest. CI does not run it: it installs
# 30 GB and takes an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
HERE=$PWD
JOBS=$HERE/scripts/peers
WORK=${WORK:-/tmp/peers}
PYTHON=${PYTHON:-.venv/bin/python}
[[ $PYTHON == /* ]] || PYTHON=$HERE/$PYTHON
CPU=(taskset -c 0)
export OMP_NUM_THREADS=1 LIGHTLY_TRAIN_EVENTS_DISABLED=1 YOLO_CONFIG_DIR=$WORK/ultralytics-settings
TIMEFORMAT='  %R s, of which %U s + %S s on the CPU'
unset PYTHONDONTWRITEBYTECODE PYTHONPATH

install() { # FOLDER REQUIREMENT...
  ENV=$WORK/$1
  [[ -n ${KEEP:-} && -d $ENV ]] && return
  rm -rf "$ENV"
  "$PYTHON" -m uv venv --quiet --python 3.11 "$ENV"
  echo "install ${*:2}"
  time "${CPU[@]}" "$PYTHON" -m uv pip install --quiet --python "$ENV/bin/python" "${@:2}"
  "$PYTHON" -m uv pip list --quiet --python "$ENV/bin/python" | grep -iE '^(timm|torchdistill|lightly-train|ultralytics|hsakd|torch |torchvision)'
  echo "  $(du -sm "$ENV" | cut -f1) MB, $("$PYTHON" -m uv pip list --quiet --python "$ENV/bin/python" | tail -n +3 | wc -l) distributions"
}

measured() { # TITLE COMMAND...
  echo "$1"
  time "${CPU[@]}" "${@:2}"
}

usage() { # COMMAND...
  echo "help"
  time "${CPU[@]}" "$@" >/dev/null 2>&1
}

release() { # NEWEST_KNOWN: the version of the page, or any with LATEST=1
  [[ -n ${LATEST:-} ]] && echo "${1%%==*}" || echo "$1"
}

timm() {
  install timm "$(release timm==1.0.31)"
  "$ENV/bin/python" "$JOBS/words.py" timm LogitDistillationTask
  measured "job" "$ENV/bin/python" "$JOBS/timm_job.py"
}

torchdistill() {
  install torchdistill "$(release torchdistill==1.1.5)" "$(release timm==1.0.31)"
  "$ENV/bin/python" "$JOBS/words.py" torchdistill get_distillation_box
  measured "job" "$ENV/bin/python" "$JOBS/torchdistill_job.py"
}

lightly() {
  install lightly "$(release 'lightly-train[timm]==0.18.0')"
  "$ENV/bin/python" "$JOBS/words.py" lightly-train 'method="distillation"'
  usage "$ENV/bin/lightly-train" --help
  measured "job" "$ENV/bin/python" "$JOBS/lightly_job.py"
}

ultralytics() {
  install ultralytics "$(release ultralytics==8.4.190)"
  "$ENV/bin/python" "$JOBS/words.py" ultralytics 'distill'
  usage "$ENV/bin/yolo" help
  measured "job without a teacher" "$ENV/bin/yolo" classify train data=pictures model=yolo26n-cls.yaml imgsz=32 batch=50 \
    epochs=5 device=cpu workers=0
}

hsakd() {
  install hsakd "$HERE[timm]"
  "$ENV/bin/python" "$JOBS/words.py" hsakd_pl 'quickstart\('
  usage "$ENV/bin/hsakd" --help
  local data=(--data ImageFolderDataModule --data.root pictures --data.image_size 32 --data.batch_size 50
    --data.augmentation none --model.lr 0.05 --trainer.max_epochs 5)
  measured "job, teacher" "$ENV/bin/hsakd" fit --model BaselineModule --model.network timm:resnet18 "${data[@]}" \
    --trainer.default_root_dir runs/teacher
  measured "job, student" "$ENV/bin/hsakd" fit --model hsakd_pl.methods.KDModule --model.network timm:resnet10t \
    --model.teacher timm:resnet18 --model.teacher_weights runs/teacher/last.ckpt "${data[@]}" \
    --trainer.default_root_dir runs/student
}

mkdir -p "$WORK/run"
cd "$WORK/run"
[[ -d pictures ]] || "$PYTHON" "$JOBS/pictures.py" pictures
(($#)) || set -- timm torchdistill lightly ultralytics hsakd
for package in "$@"; do
  echo "== $package"
  "$package"
  [[ -n ${KEEP:-} ]] || rm -rf "$ENV"
done
