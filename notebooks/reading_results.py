# %% [markdown]
# # Reading results of several runs
#
# A run writes its results into three files: `result.json`, `test.json` and `metrics.csv`. They are plain JSON and CSV,
# so that any program can read them. This notebook reads them without `hsakd_pl`, decides which runs may be averaged,
# and computes a difference of two methods with its interval. At the end it compares the numbers with `hsakd report`,
# which does all of this by itself.
#
# The runs are made here, in about a minute on one CPU core. To read your own, start at *Files* with their folder.
# `reading_a_run.ipynb` looks into a single run: curves, branches, confusion, calibration and embedding.

# %%
import csv
import hashlib
import json
import logging
import math
import shlex
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt
import yaml
from IPython.utils.capture import capture_output
from scipy.stats import t as student_t

from hsakd_pl.cli.main import main

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %% [markdown]
# ## Some runs
#
# A resnet8 with 50 labelled digits, alone and distilled by HSAKD, with three seeds each. The fourth run of `alone` has
# been made with another batch size by mistake.


# %%
def hsakd(command: str) -> str:
    """Run ``hsakd`` with these arguments, and return what it prints."""
    sys.argv = ["hsakd"]  # the name of the program in its messages
    with capture_output() as captured:
        main(shlex.split(command))
    return captured.stdout


def write(name: str, module: str, epochs: int, few: bool, **options: Any) -> None:
    """Write the configuration ``name.yaml``."""
    schedule = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": epochs}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}
    options |= {"optimizer": optimizer, "lr_scheduler": schedule, "branch_metrics_every": 0}
    data = {"train_fraction": 0.04, "batch_size": 8} if few else {"batch_size": 32}
    config = {
        "model": {"class_path": f"hsakd_pl.{module}", "init_args": options},
        "data": {"class_path": "hsakd_pl.DigitsDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "max_epochs": epochs, "enable_progress_bar": False},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


teacher = {"teacher": "resnet14", "teacher_weights": "teacher/last.ckpt"}
write("teacher", "TeacherModule", 3, few=False, network="resnet14")
write("alone", "BaselineModule", 20, few=True, network="resnet8")
write("distilled", "StudentModule", 20, few=True, network="resnet8", **teacher)

hsakd("fit --config teacher.yaml --trainer.default_root_dir teacher")
for seed in (0, 1, 2):
    for name in ("alone", "distilled"):
        hsakd(f"fit --config {name}.yaml --seed_everything {seed} --trainer.default_root_dir runs/{name}/seed{seed}")
hsakd(
    "fit --config alone.yaml --seed_everything 3 --data.init_args.batch_size 25 "
    "--trainer.default_root_dir runs/alone/seed3"
)
_ = hsakd("test --config runs/distilled/seed0/config.yaml --ckpt_path last")

# %% [markdown]
# ## Files
#
# In a checkout of the repository, `Path("results")` has further runs.

# %%
RUNS = Path("runs")
print(*sorted(str(path) for path in RUNS.rglob("result.json")), sep="\n")

# %% [markdown]
# ### `result.json`
#
# It is the result of a training. Accuracies are fractions in [0, 1]. *The* result is `last_val_acc`, that of the last
# epoch; the best epoch is chosen on the images that it is measured on, and therefore flatters. `protocol` lists
# everything that can change the result except for the seed, and `protocol.validated_on` says which images were used.

# %% tags=["measured"]
result = json.loads((RUNS / "distilled/seed0/result.json").read_text())
print(", ".join(sorted(result)))
for field in ("seed", "epochs", "finished", "last_val_acc", "best_val_acc", "best_epoch", "parameters", "resumes"):
    print(f"{field:14} {result[field]}")
for field in ("validated_on", "head", "optimizer", "batch_size", "augmentation"):
    print(f"protocol.{field:14} {result['protocol'][field]}")

# %% [markdown]
# ### `test.json`
#
# It is the result of `hsakd test`, always on the test split, and belongs to one checkpoint: `sha256` says to which.
# Here its accuracy equals `last_val_acc`, since the validation used the test split, as in the paper. With
# `val_fraction`, the two differ, and only this one is on the test split.

# %% tags=["measured"]
test = json.loads((RUNS / "distilled/seed0/test.json").read_text())
for field in ("acc", "acc_top5", "nll", "ece", "images", "split"):
    print(f"{field:10} {test[field]}")
checkpoint = (RUNS / "distilled/seed0/last.ckpt").read_bytes()
print("belongs to last.ckpt:", test["sha256"] == hashlib.sha256(checkpoint).hexdigest())
print("equals last_val_acc:", math.isclose(test["acc"], result["last_val_acc"], abs_tol=1e-6))

# %% [markdown]
# ### `metrics.csv`
#
# It has a row for each epoch and a column for each metric; a metric that an epoch did not measure is empty.

# %%
figure, axis = plt.subplots(figsize=(6, 3.4))
for name, colour in (("alone", "C0"), ("distilled", "C1")):
    for seed in (0, 1, 2):
        with (RUNS / f"{name}/seed{seed}/metrics.csv").open(newline="") as file:
            history = [line for line in csv.DictReader(file) if line["val/acc"]]
        epochs = [int(line["epoch"]) for line in history]
        percents = [100 * float(line["val/acc"]) for line in history]
        axis.plot(epochs, percents, colour, linewidth=1, label=name if seed == 0 else None)
axis.set_xlabel("epoch")
axis.set_ylabel("accuracy (%)")
axis.legend()
plt.show()

# %% [markdown]
# ## One row per run
#
# Two runs have the same protocol if `protocol.hash` is the same. The hashes are long, so that the table calls them A, B
# and C. (With pandas, `pandas.json_normalize(rows)` makes a data frame of the same files.)

# %% tags=["measured"]
rows = []
for path in sorted(RUNS.rglob("result.json")):
    row = json.loads(path.read_text())
    rows.append(row | {"folder": str(path.parent.relative_to(RUNS)), "hash": row["protocol"]["hash"]})
hashes = dict.fromkeys(row["hash"] for row in rows)
letters = dict(zip(hashes, "ABC", strict=True))

print(f"{'run':18}{'seed':>4}{'last':>10}{'best':>10}  protocol")
for row in rows:
    last, best = (f"{100 * row[field]:.1f} %" for field in ("last_val_acc", "best_val_acc"))
    print(f"{row['folder']:18}{row['seed']:4}{last:>10}{best:>10}  {letters[row['hash']]}")

# %% [markdown]
# ## Which runs may be averaged
#
# Only those of one protocol. The folder is called `alone/seed3`, but the hash shows that this run belongs to another
# experiment, and the options of both protocols say why. Its accuracy is not wrong, but a mean with the others would
# estimate the accuracy of neither: it depends on how many runs of each kind there happen to be.

# %% tags=["measured"]
groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
for row in rows:
    groups[letters[row["hash"]]].append(row)
for letter, members in groups.items():
    percents = [100 * row["last_val_acc"] for row in members]
    spread = f"± {stdev(percents):.1f}" if len(percents) > 1 else "(one run has no spread)"
    print(f"{letter}: {members[0]['folder'].split('/')[0]:10} n = {len(members)}  {mean(percents):.1f} % {spread}")

first, other = (groups[letters[row["hash"]]][0]["protocol"]["options"] for row in (rows[0], rows[3]))
for option in first:
    if first[option] != other.get(option):
        print(f"{rows[0]['folder']} and {rows[3]['folder']} differ in {option}: {first[option]} and {other[option]}")

# %% [markdown]
# ## A difference, with its interval
#
# With the same seed, `alone` and `distilled` see the same batches. So the differences are taken within a seed, and the
# interval is that of their mean: with three seeds, 4.3 standard errors to either side (Student's t with two degrees of
# freedom). The unpaired interval uses the spreads of both methods instead.
#
# Neither interval accounts for the choice of the 540 test images. For a single run, the binomial one below does.

# %% tags=["measured"]
accuracy = {
    name: {row["seed"]: 100 * row["last_val_acc"] for row in groups[letter]}
    for name, letter in (("alone", letters[rows[0]["hash"]]), ("distilled", letters[rows[-1]["hash"]]))
}
seeds = sorted(accuracy["alone"].keys() & accuracy["distilled"].keys())
differences = [accuracy["distilled"][seed] - accuracy["alone"][seed] for seed in seeds]
n = len(seeds)
difference = mean(differences)
paired = student_t.ppf(0.975, n - 1) * stdev(differences) / math.sqrt(n)
spreads = [stdev(values.values()) for values in accuracy.values()]
unpaired = student_t.ppf(0.975, 2 * n - 2) * math.hypot(*spreads) / math.sqrt(n)  # equal numbers of runs
print("differences by seed, in points:", ", ".join(f"{value:.1f}" for value in differences))
print(f"paired:   {difference:+.1f} ± {paired:.1f} points")
print(f"unpaired: {difference:+.1f} ± {unpaired:.1f} points")

share = accuracy["distilled"][0] / 100
print(f"one run:  {100 * share:.1f} ± {196 * math.sqrt(share * (1 - share) / test['images']):.1f} %, by its images")

# %%
figure, axis = plt.subplots(figsize=(6, 2))
axis.errorbar([difference, difference], [1, 0], xerr=[paired, unpaired], fmt="o", capsize=4)
axis.plot(differences, [1] * n, "k|", markersize=12)
axis.axvline(0, color="gray", linestyle=":")
axis.set_yticks([1, 0], ["paired by seed", "unpaired"])
axis.set_ylim(-0.7, 1.7)
axis.set_xlabel("distilled minus alone, points (95 % interval)")
plt.show()

# %% [markdown]
# An interval that contains 0 means that these runs do not show a difference, not that there is none: add seeds.
#
# ## The same from the command line
#
# `hsakd report` groups by the hash, names what differs, and computes the paired interval.

# %% tags=["measured"]
for record in json.loads(hsakd("report runs --format json --against alone")):
    text = f"{record['run']:20} n = {record['n']}  {record['last_mean']:.1f} %"
    if record["common_seeds"]:
        width = record["difference_high"] - record["difference"]
        text += f", {record['difference']:+.1f} ± {width:.1f} points to alone"
        same = math.isclose(record["difference"], difference) and math.isclose(width, paired)
        text += f", as computed above: {same}"
    print(text)
