# %% [markdown]
# # Your own images: from class folders to the class of a picture
#
# A folder per class is all that `hsakd_pl` needs. This notebook fine-tunes a teacher that has learnt from other images,
# distills a student from it with only five labelled pictures per class, compares it over three seeds with the same
# student trained alone, exports it, and lets the exported student classify a picture. It takes about two minutes on one
# CPU core and downloads nothing. The last section but one has the same as five commands for photographs.

# %%
import logging
import warnings
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from hsakd_pl import (
    BaselineModule,
    HSAKDModule,
    ImageFolderDataModule,
    StudentModule,
    TeacherModule,
    export_student,
    load_student,
    open_image,
)

for name in ("pytorch_lightning", "lightning_fabric", "lightning_utilities"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore")

# %% [markdown]
# ## Pictures in class folders
#
# The pictures are made of scikit-learn's handwritten digits, so that nothing is downloaded: PNG files of random size,
# ink and paper. `photos/` are your own ones, on coloured paper; only five of each class are for training. `scans/` are
# many grey pictures. They replace ImageNet here, on which published weights were trained.

# %%
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SCANS, LABELLED = 1200, 5
random = np.random.default_rng(0)
digits = load_digits()
labelled = dict.fromkeys(NAMES, 0)


def write(file: Path, pixels: np.ndarray, ink: np.ndarray, paper: np.ndarray) -> None:
    """Write a digit as a picture of random size."""
    strength = pixels[..., None] / 16
    picture = Image.fromarray((strength * ink + (1 - strength) * paper).astype(np.uint8))
    size = int(random.integers(24, 49))
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((size, size), Image.Resampling.BICUBIC).save(file)


for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    name = NAMES[label]
    if number < SCANS:
        ink, paper = np.full(3, random.integers(0, 100)), np.full(3, random.integers(200, 256))
        folder = Path("scans", "train" if number % 6 else "val")
    else:
        ink, paper = random.integers(0, 140, 3), random.integers(190, 256, 3)
        folder = Path("photos", "train" if labelled[name] < LABELLED else "val")
        labelled[name] += 1
    write(folder / name / f"{number:04}.png", pixels, ink, paper)

for folder in ("scans/train", "scans/val", "photos/train", "photos/val"):
    print(folder, len(list(Path(folder).rglob("*.png"))), "pictures")

# %%
figure, axes = plt.subplots(2, 10, figsize=(9, 2.2))
for column, name in zip(axes.T, NAMES, strict=True):
    column[0].set_title(name, fontsize=9)
    for axis, folder in zip(column, ("scans", "photos"), strict=True):
        axis.imshow(open_image(min(Path(folder, "train", name).iterdir())))
        axis.axis("off")
plt.show()

# %% [markdown]
# ## The data module
#
# `ImageFolderDataModule` resizes pictures of any size and format to squares of `image_size` pixels: 16 are enough for
# these digits, photographs need 224. Mean and standard deviation of the colours are computed once from the training
# images. In every epoch each picture is shifted slightly. Horizontal flips are disabled, because a mirrored digit is
# not a digit; for photographs keep them.

# %%
small = partial(ImageFolderDataModule, image_size=16, flip=False, batch_size=16, num_workers=0)
scans, photos = small("scans"), small("photos")
photos.setup("fit")
print(photos.num_classes, "classes, in the order of their folders:", ", ".join(photos.class_names))
print("mean:", [round(value, 3) for value in photos.mean], " std:", [round(value, 3) for value in photos.std])

# %% [markdown]
# ## A teacher that has learnt from other images
#
# First the stand-in for published weights: `resnet20` learns from the scans. Then the teacher starts from these
# weights, with a new head (`new_head`), and learns from the fifty photos; its other layers have a lower learning rate
# (`backbone_lr`), so that they keep what they know. With a network, the first line is not needed: a teacher
# `timm:tf_efficientnet_lite0` with `weights="pretrained"` starts from ImageNet.


# %% tags=["measured"]
def train(module: HSAKDModule, data: ImageFolderDataModule, epochs: int, checkpoint: str) -> float:
    """Train a module on pictures, save it, and return its accuracy in percent after the last epoch."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(checkpoint)
    return 100 * float(trainer.callback_metrics["val/acc"])


def recipe(epochs: int, lr: float = 0.003) -> dict[str, Any]:
    """Return the options of a module."""
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    optimizer = partial(AdamW, lr=lr)
    return {"num_classes": len(NAMES), "branch_metrics_every": 0, "optimizer": optimizer, "lr_scheduler": schedule}


pl.seed_everything(0)
train(TeacherModule("resnet20", **recipe(3)), scans, 3, "scans.ckpt")
teacher = TeacherModule("resnet20", weights="scans.ckpt", new_head=True, backbone_lr=0.0003, **recipe(16))
accuracy: dict[str, Any] = {"teacher": train(teacher, photos, 16, "teacher.ckpt")}
print(f"teacher: {accuracy['teacher']:.1f} % of {len(photos.splits['val'].targets)} validation pictures")

# %% [markdown]
# ## The student, alone and distilled
#
# The student `resnet8` has random weights and the same fifty photos, epochs and learning rate, once alone and once with
# the teacher, for three seeds. The interval is the 95 % interval of the mean of three differences.

# %% tags=["measured"]
EPOCHS, SEEDS = 100, (0, 1, 2)
accuracy |= {"alone": [], "distilled": []}
for seed in SEEDS:
    pl.seed_everything(seed)
    alone = BaselineModule("resnet8", **recipe(EPOCHS, lr=0.005))
    accuracy["alone"].append(train(alone, photos, EPOCHS, "alone.ckpt"))
    pl.seed_everything(seed)
    student = StudentModule("resnet8", teacher.network, **recipe(EPOCHS, lr=0.005))  # freezes the teacher
    accuracy["distilled"].append(train(student, photos, EPOCHS, f"student{seed}.ckpt"))
    print(f"seed {seed}: {accuracy['alone'][-1]:.1f} % alone, {accuracy['distilled'][-1]:.1f} % distilled")
gains = [after - before for before, after in zip(accuracy["alone"], accuracy["distilled"], strict=True)]
interval = 4.303 * stdev(gains) / len(gains) ** 0.5  # Student's t for three values
print(f"gain: {mean(gains):.1f} +- {interval:.1f} points")

# %% [markdown]
# Distillation pays off where the teacher knows more than the labels at hand say. With many labels, or a teacher without
# other images behind it, the two students come closer: compare them on your own pictures in this way.
#
# ## Export
#
# `export_student` writes a self-contained folder: `model.safetensors` and `config.json` for `load_student`, `model.pt2`
# for PyTorch without this package, and a model card. With `pip install 'hsakd_pl[export]'`, the format `onnx` adds a
# file for onnxruntime. The exported network has no branches, and includes class names and normalisation. Before a file
# is kept, its outputs are compared with those of the trained network on validation pictures.

# %% tags=["measured"]
export = export_student("student0.ckpt", "exported", formats=("safetensors", "pt2"), data=photos)
print("compared over", export.checked)
for file in export.files:
    print(f"{file.path.name}: {1000 * file.megabytes:.0f} kB")

# %% [markdown]
# ## Photographs, from the command line
#
# The same steps for photographs in `photos/`, with weights from ImageNet, 224 pixels, and runs that can be interrupted
# and resumed. `hsakd recipes configs` writes the configurations.
#
# ```bash
# hsakd fit --config configs/images/teacher.yaml
# hsakd fit --config configs/images/student.yaml
# hsakd test --config runs/images/student/config.yaml --ckpt_path last --model.ensemble all
# hsakd export runs/images/student exported --int8
# hsakd predict exported photos/val
# ```
#
# ## The class of a picture
#
# `load_student` needs only the exported folder, neither the training images nor the teacher. `transform` converts a
# picture of any size to the input of the network. On all validation pictures the accuracy is that of the training;
# below are a picture, its most probable classes and their probabilities.

# %% tags=["measured"]
loaded = load_student("exported")


def predict(pictures: list[Image.Image]) -> torch.Tensor:
    """Return the class probabilities (B, N) of pictures of any size."""
    return loaded(torch.stack([loaded.transform(picture) for picture in pictures])).softmax(1)


paths = sorted(Path("photos", "val").rglob("*.png"))
predicted = predict([open_image(path) for path in paths]).argmax(1).tolist()
correct = [loaded.class_names[label] == path.parent.name for path, label in zip(paths, predicted, strict=True)]
accuracy["exported"] = 100 * sum(correct) / len(correct)
print(f"exported student: {accuracy['exported']:.1f} % of {len(paths)} pictures")

# %%
picture = open_image(paths[0])
probabilities, classes = predict([picture])[0].topk(3)
best = [f"{loaded.class_names[label]}, {100 * p:.0f} %" for p, label in zip(probabilities, classes, strict=True)]
plt.figure(figsize=(2.6, 2.6))
plt.imshow(picture)
plt.title("\n".join(best), fontsize=10)
plt.axis("off")
plt.show()
