#!/usr/bin/env bash
# Measures what unlabelled images, a teacher without a head and averages of the weights are worth:
# scripts/pictures.sh [labels] [embedding] [ema], default all. Seeds with a result are skipped, and interrupted ones
# resume. Needs CIFAR-100 in DATA and the published joint wrn_40_2 teacher as TEACHER. SEEDS, OUT and PRECISION can be set.
set -euo pipefail
cd "$(dirname "$0")/.."
SEEDS=${SEEDS:-0-2}
OUT=${OUT:-runs/pictures}
DATA=${DATA:-data}
TEACHER=${TEACHER:-weights/wrn_40_2_aux.pth.tar}
PYTHON=${PYTHON:-.venv/bin/python}
PRECISION=${PRECISION:-bf16-mixed}
read -ra MORE <<<"${MORE:-}" # further options of every fit, such as --trainer.limit_train_batches 2

program() {
  nice -n 19 "$PYTHON" -m hsakd_pl "$@"
}

fit() { # FOLDER [OPTIONS OF fit...]
  program sweep --seeds "$SEEDS" "${@:2}" --trainer.default_root_dir "$OUT/$1" --trainer.accelerator cpu \
    --trainer.precision "$PRECISION" "${MORE[@]}"
}

CIFAR=(--data CIFAR100DataModule --data.init_args.root "$DATA")

labels() { # 5 % of the labels: alone, with KD, and with KD on the other images too, for the same 2,000 steps
  local few=("${CIFAR[@]}" --data.init_args.train_fraction 0.05 --trainer.max_epochs 50
    --trainer.check_val_every_n_epoch 5 --model.init_args.milestones '[30,40,45]')
  local kd=(--model hsakd_pl.methods.KDModule --model.init_args.teacher wrn_40_2
    --model.init_args.teacher_weights "$TEACHER" --model.init_args.network resnet20)
  fit labels/alone --model BaselineModule --model.init_args.network resnet20 "${few[@]}"
  fit labels/kd "${kd[@]}" "${few[@]}"
  fit labels/kd_unlabelled "${kd[@]}" "${few[@]}" --data.init_args.unlabelled rest --data.init_args.unlabelled_ratio 4
  program report "$OUT/labels"
}

embedding() { # the embedding of the teacher's backbone, and of a transformer that has learnt nothing; then probes
  local short=("${CIFAR[@]}" --trainer.max_epochs 20 --model.init_args.milestones '[12,16,18]')
  fit embedding/scratch --model BaselineModule --model.init_args.network resnet20 "${short[@]}"
  fit embedding/distilled --model EmbeddingModule --model.init_args.network resnet20 \
    --model.init_args.teacher wrn_40_2 --model.init_args.teacher_weights "$TEACHER" \
    --model.init_args.teacher_mean data "${short[@]}"
  fit embedding/random_vit --model EmbeddingModule --model.init_args.network resnet20 \
    --model.init_args.teacher timm:test_vit --model.init_args.teacher_weights random "${CIFAR[@]}" \
    --trainer.max_epochs 3 --model.init_args.milestones '[2]'
  local start seed run
  for run in distilled random_vit; do
    for start in "$OUT/embedding/$run"/seed*/last.ckpt; do
      seed=$(basename "$(dirname "$start")")
      [[ -e $OUT/embedding/${run}_probe/$seed/test.json ]] || SEEDS=${seed#seed} fit "embedding/${run}_probe" \
        --model LinearProbeModule --model.init_args.network resnet20 --model.init_args.weights "$start" \
        --model.init_args.knn 20 "${CIFAR[@]}" --data.init_args.augment false --cache_features true \
        --trainer.max_epochs 30 --model.init_args.milestones '[15,22,27]'
    done
  done
  program report "$OUT/embedding"
}

ema() { # averages of decay 0.9, 0.99 and 0.999: Lightning's and those of this package, on two data sets
  local digits=(--data DigitsDataModule --model.init_args.network resnet8 --trainer.max_epochs 8)
  local cifar=("${CIFAR[@]}" --data.init_args.train_fraction 0.1 --model.init_args.network resnet20
    --trainer.max_epochs 30 --trainer.check_val_every_n_epoch 3 --model.init_args.milestones '[20,26]')
  local name decay
  for name in digits cifar; do
    local -n data=$name
    fit "ema/$name/none" --model BaselineModule "${data[@]}"
    for decay in 0.9 0.99 0.999; do
      fit "ema/$name/lightning_$decay" --model BaselineModule "${data[@]}" \
        --trainer.callbacks+=pytorch_lightning.callbacks.EMAWeightAveraging --trainer.callbacks.decay "$decay"
      fit "ema/$name/ours_$decay" --model BaselineModule "${data[@]}" \
        --trainer.callbacks+=hsakd_pl.EMA --trainer.callbacks.decay "$decay"
    done
    program report "$OUT/ema/$name"
  done
}

[[ $# -gt 0 ]] || set -- labels embedding ema
for part in "$@"; do
  "$part"
done
