#!/usr/bin/env bash
# Measures the numbers of RESULTS.md: scripts/results.sh [quickstart] [teacher] [comparison] [bench] [small] [precision]
# [budgets] [runtimes] [int8] [mutual] [column], default all but column, which takes days on a CPU.
# Experiments that have a result are skipped, and interrupted ones resume. What runs of small, budgets, precision, mutual and
# column have measured is copied to results/, which is part of the repository, so that other machines skip those runs too.
# scripts/replicate.sh repeats them, for which it sets REPEAT, EPOCHS and PLAN.
# Needs CIFAR-100 in data/ and the published joint wrn_40_2 teacher in weights/wrn_40_2_aux.pth.tar. SEEDS and OUT can be
# set, METHODS for small, BUDGETS, as FRACTION:EPOCHS:MILESTONES, for budgets, and TRAINER, a configuration such as
# configs/trainer/gpu.yaml, for column.
set -euo pipefail
cd "$(dirname "$0")/.."
SEEDS=${SEEDS:-0}
OUT=${OUT:-runs/results}
TEACHER=${TEACHER:-weights/wrn_40_2_aux.pth.tar}
BUDGETS=${BUDGETS:-0.2:12:8,10,11 1.0:4:2,3}
PYTHON=${PYTHON:-.venv/bin/python}
FEWER=(${EPOCHS:+--trainer.max_epochs "$EPOCHS" --trainer.check_val_every_n_epoch "$EPOCHS"})

take() { # runs with stored results are not repeated
  mkdir -p "$OUT"
  [[ ! -d results ]] || cp -R --no-clobber results/. "$OUT"
}

store() { # the results of finished runs
  local part folder name
  for part in small budgets precision mutual column; do
    [[ -d $OUT/$part ]] || continue
    find "$OUT/$part" -name test.json -printf '%P\n' | while read -r name; do
      folder=$part/$(dirname "$name")
      mkdir -p "results/$folder"
      cp "$OUT/$folder"/{result.json,test.json,metrics.csv} "results/$folder"
    done
  done
}

fit() { # FOLDER [OPTIONS OF fit...]
  "$PYTHON" -m hsakd_pl sweep ${PLAN:-} --seeds "$SEEDS" "${@:2}" --trainer.default_root_dir "$OUT/$1" \
    --trainer.accelerator cpu "${FEWER[@]}"
}

quickstart() { # about 1 minute per seed on two cores
  mkdir -p "$OUT/quickstart"
  for seed in 0 1 2 3 4; do
    local table="$OUT/quickstart/seed$seed.txt"
    [[ -e $table ]] && continue
    "$PYTHON" -m hsakd_pl.quickstart --seed "$seed" >"$table.partial"
    mv "$table.partial" "$table"
  done
}

teacher() { # 10 minutes
  [[ -e $OUT/teacher/test.json ]] || "$PYTHON" main.py test --config configs/cifar100/teacher_joint_wrn_40_2.yaml \
    --model.init_args.weights "$TEACHER" --model.init_args.ensemble all \
    --trainer.default_root_dir "$OUT/teacher" --trainer.accelerator cpu
}

comparison() { # 10 % of the training images, 20 epochs: 80 minutes per seed, most of them for HSAKD*
  local small=(--trainer.max_epochs 20 --data.init_args.train_fraction 0.1 --model.init_args.milestones '[13,16,18]')
  local taught=("${small[@]}" --model.init_args.teacher_weights "$TEACHER")
  fit comparison/alone --config configs/cifar100/baseline_wrn_16_2.yaml "${small[@]}"
  fit comparison/kd --config configs/cifar100/kd_wrn_40_2-wrn_16_2.yaml "${taught[@]}"
  fit comparison/hsakd --config configs/cifar100/student_joint_wrn_40_2-wrn_16_2.yaml "${taught[@]}"
  [[ ${PLAN:-} ]] || "$PYTHON" main.py report "$OUT/comparison" --format md
}

bench() { # all single-stage methods, 10 % of the training images, 10 epochs: 6 minutes per method on one 2.6 GHz core
  OMP_NUM_THREADS=1 "$PYTHON" -m hsakd_pl bench ${PLAN:---format md} classic --pairs wrn_40_2-wrn_16_2 --seeds "$SEEDS" \
    --methods 'alone,KD,FitNet,AT,SP,CC,VID,RKD,PKT,CRD,ReviewKD,DKD,DIST,KD+LS' --teachers "wrn_40_2=$TEACHER" \
    --folder "$OUT/bench" --trainer.max_epochs 10 --model.init_args.milestones '[6,8,9]' \
    --trainer.check_val_every_n_epoch 5 --data.init_args.train_fraction 0.1 --trainer.accelerator cpu \
    "${FEWER[@]}"
}

small() { # all methods, 10 % of the training images, 30 epochs; by --dry-run 7 to 22 minutes for three of them, on one core with AMX
  OMP_NUM_THREADS=1 "$PYTHON" -m hsakd_pl bench ${PLAN:---format md} small --seeds "$SEEDS" --teachers "wrn_40_2=$TEACHER" \
    --folder "$OUT/small" --teacher-answers "$OUT/answers" --config configs/trainer/cpu-bf16.yaml \
    --trainer.check_val_every_n_epoch 30 ${METHODS:+--methods "$METHODS"} "${FEWER[@]}"
}

budgets() { # at which budget do methods come in the published order? all images, 4 epochs: 82 minutes on one core
  local budget fraction epochs milestones rows
  for budget in $BUDGETS; do
    IFS=: read -r fraction epochs milestones <<<"$budget"
    for rows in alone,KD,CRD ReviewKD,DKD; do
      local warmup=()
      [[ $rows == alone* ]] || warmup=(--model.init_args.weight_warmup_epochs 1) # of 240 epochs, 20
      OMP_NUM_THREADS=1 "$PYTHON" -m hsakd_pl bench ${PLAN:---format md} small --seeds "$SEEDS" --teachers "wrn_40_2=$TEACHER" \
        --methods "$rows" --folder "$OUT/budgets/${fraction}x$epochs" --teacher-answers "$OUT/answers" \
        --config configs/trainer/cpu-bf16.yaml "${warmup[@]}" \
        --trainer.max_epochs "$epochs" --trainer.check_val_every_n_epoch "$epochs" \
        --model.init_args.milestones "[$milestones]" --data.init_args.train_fraction "$fraction" "${FEWER[@]}"
    done
  done
}

precision() { # float32 and bf16 with 10 % of the training images; 8 epochs, 3 of HSAKD: 50 minutes per seed on one core with AMX
  local short=(--trainer.max_epochs 8 --trainer.check_val_every_n_epoch 8 --model.init_args.milestones '[5,7]')
  local taught=(--model.network resnet20 --model.teacher_weights "$TEACHER")
  for precision in 32-true bf16-mixed; do
    local few=(--trainer.precision "$precision" --data.init_args.train_fraction 0.1)
    fit "precision/$precision/alone" --config configs/cifar100/baseline_resnet20.yaml "${few[@]}" "${short[@]}"
    fit "precision/$precision/kd" --config configs/cifar100/kd_wrn_40_2-wrn_16_2.yaml "${few[@]}" "${taught[@]}" "${short[@]}"
    fit "precision/$precision/hsakd" --config configs/cifar100/student_joint_wrn_40_2-wrn_16_2.yaml "${few[@]}" "${taught[@]}" \
      --trainer.max_epochs 3 --trainer.check_val_every_n_epoch 3 --model.init_args.milestones '[2]'
  done
}

trained() { # NETWORK FRACTION EPOCHS MILESTONES: a student for the runtimes
  SEEDS=0 fit "runtimes/${1#timm:}" --model BaselineModule --model.init_args.network "$1" \
    --model.init_args.milestones "[$4]" --data CIFAR100DataModule --data.init_args.train_fraction "$2" \
    --trainer.max_epochs "$3" --trainer.check_val_every_n_epoch "$3" --trainer.precision bf16-mixed
}

runtimes() { # exports of students after a short training, in every runtime of the environment: 40 minutes on one core
  local networks=(wrn_16_2 resnet8x4 mobilenetv2 shufflenetv2 timm:lcnet_050) checkpoints=() network
  for network in "${networks[@]:0:2}"; do trained "$network" 0.2 6 4,5; done
  for network in "${networks[@]:2}"; do trained "$network" 0.1 4 2,3; done
  for network in "${networks[@]}"; do checkpoints+=("$network=$OUT/runtimes/${network#timm:}/seed0/last.ckpt"); done
  "$PYTHON" -m benchmarks exports --networks "${networks[@]}" --checkpoints "${checkpoints[@]}"
}

mutual() { # one epoch on all of CIFAR-100: about 40 minutes per pair and seed
  for network in resnet56 shufflenetv2; do
    fit "mutual/$network" --config "configs/cifar100/mutual_$network-$network.yaml" \
      --trainer.max_epochs 1 --model.init_args.lr 0.01
  done
}

column() { # a column of the published tables at full budget, with its teacher; the methods share the teacher's kept answers
  local table methods
  for table in classic newer; do
    methods=alone,KD,DKD,DIST,KD+LS,AT,CRD,ReviewKD
    [[ $table == classic ]] || methods=WTTM,NKD
    "$PYTHON" -m hsakd_pl bench ${PLAN:---format md} "$table" --pairs resnet56-resnet20 --seeds "$SEEDS" \
      --methods "$methods" --folder "$OUT/column" --teacher-answers "$OUT/answers" \
      --config "${TRAINER:-configs/trainer/cpu-bf16.yaml}" "${FEWER[@]}"
  done
}

int8() { # three seeds of a student that is trained for int8: two hours on one core
  local data="--data CIFAR100DataModule --data.init_args.train_fraction 0.1 --trainer.accelerator cpu"
  local network="--model.init_args.network mobilenetv2"
  "$PYTHON" scripts/int8.py "$OUT/int8" --student "--model BaselineModule $network $data --trainer.max_epochs 20 \
      --model.init_args.milestones [13,16,18] --trainer.check_val_every_n_epoch 20" \
    --tuning "--model hsakd_pl.methods.KDModule $network $data --trainer.max_epochs 3 --model.init_args.lr 0.0005 \
      --model.init_args.teacher wrn_40_2 --model.init_args.teacher_weights $TEACHER \
      --model.init_args.milestones [2] --trainer.check_val_every_n_epoch 3"
}

if [[ ! ${REPEAT:-} ]]; then
  take
  trap store EXIT
fi
for part in ${*:-quickstart teacher comparison bench small budgets precision runtimes int8 mutual}; do "$part"; done
