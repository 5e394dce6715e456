# %% [markdown]
# # Reading a run
#
# A run from the command line writes a folder with its configuration, two checkpoints, metrics per epoch, its result,
# and the results of tests. This notebook trains three runs on the digits and reads their files: curves, branches,
# confusion, calibration and embedding. It takes about half a minute on one CPU core. To read your own run, start at
# *Files of a run* and enter its folder.

# %%
import base64
import io
import json
import logging
import shlex
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml

from hsakd_pl.cli.main import main
from hsakd_pl.records.formats import read_history

for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore")

# %% [markdown]
# ## Three runs
#
# A configuration is a YAML file like those in `configs/`. The runs are a teacher with branches on all training digits,
# a student alone, and a distilled student, with 100 labels each. The function `hsakd` below runs the command of this
# name in this process.


# %%
def hsakd(command: str) -> None:
    """Run ``hsakd`` with these arguments."""
    sys.argv = ["hsakd"]  # the name of the program in its messages
    main(shlex.split(command))


def write(name: str, module: str, epochs: int, few: bool, **options: Any) -> None:
    """Write the configuration ``name.yaml`` of a run in ``runs/name``."""
    schedule = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": epochs}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}
    options |= {"optimizer": optimizer, "lr_scheduler": schedule}
    data = {"train_fraction": 0.08, "batch_size": 16} if few else {"batch_size": 32}
    trainer = {"accelerator": "cpu", "max_epochs": epochs, "default_root_dir": f"runs/{name}"}
    config = {
        "model": {"class_path": f"hsakd_pl.{module}", "init_args": options},
        "data": {"class_path": "hsakd_pl.DigitsDataModule", "init_args": data},
        "trainer": {**trainer, "enable_progress_bar": False},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


write("teacher", "TeacherModule", 3, few=False, network="resnet14", branch_metrics_every=0)
write("alone", "BaselineModule", 12, few=True, network="resnet8")
write(
    "distilled",
    "StudentModule",
    12,
    few=True,
    network="resnet8",
    teacher="resnet14",
    teacher_weights="runs/teacher/last.ckpt",
    branch_metrics_every=2,
)
print(Path("distilled.yaml").read_text())

# %%
for name in ("teacher", "alone", "distilled"):
    hsakd(f"fit --config {name}.yaml")

# %% [markdown]
# After `fit`, run `test` with the saved configuration and the last checkpoint.

# %% tags=["measured"]
hsakd("test --config runs/distilled/config.yaml --ckpt_path last")

# %% [markdown]
# ## Files of a run
#
# | file | content |
# |---|---|
# | `config.yaml` | the complete configuration including defaults |
# | `last.ckpt`, `best.ckpt` | checkpoints of the last epoch, which is the result, and of the best epoch |
# | `metrics.csv`, `curves.png` | one row per epoch, and a plot of the curves |
# | `result.json` | accuracy, protocol, seconds, device, versions, commit |
# | `test.json`, `test_details.json` | the metrics of a test, and details for plots |

# %%
run = Path("runs/distilled")
print(*sorted(path.name for path in run.iterdir() if not path.name.startswith(".")), sep="\n")

# %% [markdown]
# ## The table of all runs
#
# `hsakd report runs` prints a table of all runs below a folder. Runs that differ only in their seed are averaged in
# one row, and `--against` adds the paired difference from another row; `reading_results.ipynb` explains both.
# `--format` prints Markdown, LaTeX, CSV or JSON, and `--html report.html` writes a page with all plots of this
# notebook.

# %% tags=["measured"]
with redirect_stdout(io.StringIO()) as table:
    hsakd("report runs --format json --against alone")
for row in json.loads(table.getvalue()):
    difference = "" if row["difference"] is None else f", {row['difference']:+.1f} points to alone"
    print(f"{row['run']:10} {row['n']} seed: {row['last_mean']:.1f} % after the last epoch{difference}")

# %% [markdown]
# ## Curves: losses and branches
#
# `metrics.csv` has one row per epoch and one column per logged metric. The left plot shows the terms of the student's
# loss. The right plot shows the accuracy of the class head on unrotated test images and, every second epoch, the
# accuracy of each branch on the class when its joint logits are summed over the rotations. The branches are evaluated
# on all four rotations, in which a 6 may look like a 9, so they are comparable with each other but not with the class
# head.

# %%
history = read_history(run / "metrics.csv")  # one dictionary per epoch
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for axis, columns in (
    (axes[0], ["train/loss_ce", "train/loss_kd", "train/loss_joint_kd"]),
    (axes[1], ["val/acc", "val/branch1_class", "val/branch2_class", "val/branch3_class"]),
):
    scale = 100 if columns[0] == "val/acc" else 1
    for column in columns:
        every = 2 if "branch" in column else 1  # branch_metrics_every
        points = [(row["epoch"], scale * row[column]) for row in history if row["epoch"] % every == 0]
        axis.plot(*zip(*points, strict=True), "o-", markersize=3, label=column)
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
axes[0].set_ylabel("loss")
axes[1].set_ylabel("accuracy (%)")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Test metrics
#
# Accuracies and the calibration error are fractions in [0, 1]. `branch1_joint` is the accuracy of branch 1 on the
# joint labels of class and rotation, `branch1_class` that on the class.

# %% tags=["measured"]
test = json.loads((run / "test.json").read_text())
for name in ("acc", "acc_top5", *(f"branch{number}_{kind}" for kind in ("class", "joint") for number in (1, 2, 3))):
    print(f"{name:14} {100 * test[name]:5.1f} %")
print(f"negative log-likelihood {test['nll']:.2f}, expected calibration error {100 * test['ece']:.1f} %")

# %% [markdown]
# ## Confusion and calibration
#
# `test_details.json` contains the most frequent confusions of two classes, and the predictions in bins of their
# probability. A bar above the diagonal means that the network is correct more often than its probabilities say.

# %%
details = json.loads((run / "test_details.json").read_text())
names = details["class_names"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
confused = details["confused"][::-1]
axes[0].barh([f"{names[true]} taken for {names[taken]}" for true, taken, _ in confused], [row[2] for row in confused])
axes[0].set_xlabel("test images")
bins = [each for each in details["reliability"] if each]
confidence, accuracy = ([100 * each[place] for each in bins] for place in (1, 2))
shades = [plt.cm.Blues(0.3 + 0.7 * each[0] / max(bins)[0]) for each in bins]
axes[1].bar(confidence, accuracy, width=4, color=shades)
axes[1].plot([0, 100], [0, 100], "k--", linewidth=1)
axes[1].set_xlabel("mean probability in a bin (%); darker: more images")
axes[1].set_ylabel("accuracy (%)")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The embedding
#
# The embedding is the input of the last layer, 64 numbers per image here, projected to two dimensions with t-SNE.
# Confused classes are close to each other; a point far from its class is an image worth looking at.

# %%
embedding = details["embedding"]
points, labels = np.array(embedding["points"]), np.array(embedding["labels"])
plt.figure(figsize=(6, 5))
plt.scatter(*points.T, c=labels, cmap="tab10", s=8)
for label, name in enumerate(names):
    middle = np.median(points[labels == label], 0)
    plt.annotate(name, middle, fontsize=14, ha="center", va="center", bbox={"fc": "white", "alpha": 0.7, "lw": 0})
plt.title(f"{len(points)} test images by {embedding['method']}")
plt.axis("off")
plt.show()

# %% [markdown]
# ## One image, rotated
#
# For one test image, the details contain the rotated images and the predictions of each head. The class head was
# trained with labels on unrotated images only, but with the teacher's predictions on all four rotations.

# %%
example = details["example"]
heads = list(example["heads"])
figure, axes = plt.subplots(1, 4, figsize=(9, 3))
for axis, turn, picture, *answers in zip(
    axes, range(4), example["pictures"], *(example["heads"][head] for head in heads), strict=True
):
    axis.imshow(plt.imread(io.BytesIO(base64.b64decode(picture))))
    lines = [
        f"{head}: {names[best[0][0]]} ({100 * best[0][1]:.0f} %)" for head, best in zip(heads, answers, strict=True)
    ]
    axis.set_title(f"{90 * turn}°", fontsize=10)
    axis.set_xlabel("\n".join(lines), fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
figure.suptitle(f"a test image of the class {names[example['label']]}")
figure.tight_layout()
plt.show()
