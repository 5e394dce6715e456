# %% [markdown]
# # From a student to int8, and where it runs
#
# A finished student is exported to ONNX in float32 and in 8-bit integers (int8), measured, and run in onnxruntime,
# OpenVINO and PyTorch. Then it is trained for int8, and calibrated so that easy images leave it early. Everything is a
# command of `hsakd` or a few lines of the runtime's own Python, on scikit-learn's handwritten digits, in about two
# minutes on one CPU core (`pip install '.[notebooks,export]'`).

# %%
import csv
import json
import logging
import shlex
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch
import yaml
from IPython.utils.capture import capture_output
from PIL import Image

from hsakd_pl import DigitsDataModule, load_student
from hsakd_pl.cli.main import main

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %% [markdown]
# ## A student
#
# A resnet14 learns from a resnet20 with branches, from 251 labelled digits. The other 1,006 training images are held
# out (`val_fraction`): its early exits are chosen on them below, and the 540 test images remain for the tests.


# %%
def hsakd(command: str, quiet: bool = False) -> None:
    """Run ``hsakd`` with these arguments, and show what it prints unless ``quiet``."""
    sys.argv = ["hsakd"]  # the name of the program in its messages
    with capture_output() if quiet else nullcontext():
        main(shlex.split(command))


def write(name: str, epochs: int, lr: float, module: str, callbacks: tuple[str, ...] = (), **options: Any) -> None:
    """Write the configuration ``name.yaml`` of a run in ``runs/name``."""
    schedule = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": epochs}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}}
    options |= {"optimizer": optimizer, "lr_scheduler": schedule, "branch_metrics_every": 0}
    held_out = {"val_fraction": 0.8, "batch_size": 16} if "teacher" in options else {"batch_size": 32}
    config = {
        "model": {"class_path": f"hsakd_pl.{module}", "init_args": options},
        "data": {"class_path": "hsakd_pl.DigitsDataModule", "init_args": held_out},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": epochs,
            "check_val_every_n_epoch": epochs,
            "default_root_dir": f"runs/{name}",
            "enable_progress_bar": False,
            "callbacks": [{"class_path": path} for path in callbacks],
        },
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


pair = {"network": "resnet14", "teacher": "resnet20", "teacher_weights": "runs/teacher/last.ckpt"}
write("teacher", 3, 0.003, "TeacherModule", network="resnet20")
write("student", 10, 0.003, "StudentModule", **pair)
for name in ("teacher", "student"):
    hsakd(f"fit --config {name}.yaml", quiet=True)

# %% [markdown]
# ## Export and measure
#
# `export --int8` writes `model.onnx` and `model.int8.onnx`, among others, compares each file with PyTorch, and measures
# both on the test images: size, accuracy, agreement with `model.onnx`, and images per second with batches of 1 and 32.
# The ranges of the activations come from 256 training images.

# %% tags=["machine"]
hsakd("export runs/student student --int8")

# %% [markdown]
# Look at the accuracy and at the agreement: two files may be right equally often and still disagree. The gain in speed
# grows with the network. This one is tiny, and its images have 16 x 16 pixels; *Where can my student run* in the
# documentation has the table of larger ones, which are 2 to 4 times as fast in int8 on CPUs with VNNI. `export.json`
# has the same table for programs.
#
# ## Predictions in three runtimes
#
# The same 540 images in each runtime. The network normalises its input, so that images are given as they are, in
# [0, 1]. Differences are those of a logit from PyTorch's.

# %% tags=["measured"]
data = DigitsDataModule()
data.setup("test")
test = data.splits["test"]
pixels = (test.images.float() / 255).numpy()
labels = test.targets.numpy()

logits: dict[str, np.ndarray] = {}
with torch.no_grad():
    logits["PyTorch, model.safetensors"] = load_student("student")(torch.from_numpy(pixels)).numpy()
for file in ("model.onnx", "model.int8.onnx"):
    session = onnxruntime.InferenceSession(f"student/{file}")
    logits[f"onnxruntime, {file}"] = session.run(None, {"input": pixels})[0]


def compare(name: str) -> None:
    """Print accuracy, agreement with PyTorch, and largest difference of a logit of a runtime."""
    expected = logits["PyTorch, model.safetensors"]
    right = 100 * (logits[name].argmax(1) == labels).mean()
    agreeing = 100 * (logits[name].argmax(1) == expected.argmax(1)).mean()
    largest = np.abs(logits[name] - expected).max() / np.abs(expected).max()
    print(f"{name:29} {right:.1f} %, agrees for {agreeing:.1f} %, differs by {largest:.6f} of the largest logit")


for name in logits:
    compare(name)

# %% [markdown]
# OpenVINO reads the same two files. On CPUs with bf16 it would compute `model.onnx` in bf16, if
# `EXECUTION_MODE_HINT` did not keep float32.

# %% tags=["machine"]
try:
    import openvino
except ImportError:
    print("OpenVINO is left out: pip install openvino")
else:
    for file in ("model.onnx", "model.int8.onnx"):
        compiled = openvino.Core().compile_model(f"student/{file}", "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
        logits[f"OpenVINO, {file}"] = compiled(pixels)[0]
        compare(f"OpenVINO, {file}")

# %% [markdown]
# ## Training for int8
#
# With the callback `QuantizationAware`, a finished student trains a few epochs more while its weights and activations
# are rounded as in `model.int8.onnx`. A fair comparison trains another copy for the same epochs in float32.

# %%
start = {"weights": "runs/student/last.ckpt", **pair}
write("aware", 4, 0.0003, "StudentModule", callbacks=("hsakd_pl.QuantizationAware",), **start)
write("longer", 4, 0.0003, "StudentModule", **start)
for name in ("aware", "longer"):
    hsakd(f"fit --config {name}.yaml", quiet=True)
    hsakd(f"export runs/{name} {name} --int8", quiet=True)

# %% tags=["measured"]
accuracy: dict[str, dict[str, float]] = {}
titles = {"student": "the student", "aware": "4 more epochs for int8", "longer": "4 more epochs in float32"}
for folder, title in titles.items():
    measured = json.loads(Path(folder, "export.json").read_text())["measured"]["rows"]
    accuracy[folder] = {row["file"]: 100 * row["accuracy"] for row in measured if row["batch_size"] == 32}
    files = ", ".join(f"{file} {percent:.1f} %" for file, percent in accuracy[folder].items())
    print(f"{title:25} {files}")

# %% [markdown]
# One image is 0.2 points. Resnets lose little or nothing by int8, so that there is nothing to regain here, and more
# epochs may help both. Networks of depthwise convolutions, such as mobilenetv2, lose more. Before training for int8,
# look whether the loss is there, and compare with the same epochs in float32.
#
# ## Leaving early
#
# The student has branches, which the export leaves out. If it keeps them, an image can leave at the first branch that
# is sure (*early exit*), or ask the class head first, and larger and larger ensembles of branches and rotations only if
# that is not sure (*cascade*). `test` with `ensemble` evaluates thresholds on the test images; that is a report, and no
# way to choose one.

# %%
hsakd("test --config runs/student/config.yaml --ckpt_path last --model.init_args.ensemble all", quiet=True)
tested = json.loads(Path("runs/student/test.json").read_text())
for kind in ("cascade", "early_exit"):
    points = [(row["multiply_adds"] / 1e6, 100 * row["acc"]) for row in tested[kind]]
    plt.plot(*zip(*points, strict=True), "o-", markersize=3, label=kind.replace("_", " "))
head = tested["ensemble"]["class_head"]
plt.plot(head["multiply_adds"] / 1e6, 100 * head["acc"], "k*", markersize=12, label="class head alone")
plt.xlabel("mean multiply-adds per image (millions)")
plt.ylabel("test accuracy (%)")
plt.legend()
plt.show()

# %% [markdown]
# `calibrate` chooses on the images that the run held out: here the most accurate way with at most 20 million
# multiply-adds per image. It also fits a temperature, by which the probabilities of the class head become honest.
# Networks are often too sure of themselves (a temperature above 1); students that imitate softened probabilities may be
# the opposite.

# %% tags=["machine"]
hsakd("calibrate runs/student --target-macs 20e6")

# %% [markdown]
# From now on `predict` uses the temperature and the exits. Let us check the promise on pictures of the test images.

# %% tags=["measured"]
for index, (image, label) in enumerate(zip(test.images, test.targets.tolist(), strict=True)):
    path = Path(f"pictures/{label}/{index:03}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
hsakd("predict runs/student pictures --folder predictions", quiet=True)
with Path("predictions/predictions.csv").open(newline="") as file:
    predictions = list(csv.DictReader(file))
right = [row["class"] == Path(row["image"]).parent.name for row in predictions]
early = 100 * sum(right) / len(right)
probability = 100 * sum(float(row["probability"]) for row in predictions) / len(predictions)
print(f"with early exits {early:.1f} %, mean probability {probability:.1f} %")
print(f"class head alone {100 * tested['acc']:.1f} %")

# %% [markdown]
# On these digits no exit is worth its price: the class head is the cheapest answer, and nothing is better. A branch
# repeats the stages after it, so that leaving by a branch costs more than the class head, and a rotated 6 looks like a
# 9, which misleads the ensembles. `calibrate` finds that out without the test images, and lets nearly every image leave
# at once. On CIFAR-100, the wrn_40_2 of *Using the student* in the documentation gains 1.3 points by a cascade, with
# 474 instead of 328 million multiply-adds.
#
# `export` now writes the calibration, too: `student/config.json` has the temperature and the threshold, and
# `branches.safetensors` the branches. ONNX files return logits as they are: divide them by the temperature before the
# softmax, as `hsakd predict --runtime onnxruntime` does.
