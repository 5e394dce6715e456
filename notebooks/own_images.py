# %% [markdown]
# # Your own images: from class folders to predictions
#
# `hsakd_pl` only needs one folder per class. This notebook trains a teacher, distills a student from it, exports a
# student that needs neither the training images nor the teacher, and predicts single pictures. It takes about a minute
# on one CPU core. To use your own pictures, skip the first section and enter your folder in the second.

# %%
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from hsakd_pl import (
    HSAKDModule,
    ImageFolderDataModule,
    StudentModule,
    TeacherModule,
    export_student,
    load_student,
    open_image,
)

for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore")

# %% [markdown]
# ## Pictures in class folders
#
# To avoid a download, the pictures are generated from scikit-learn's handwritten digits: PNG files of random size, ink
# colour and paper colour. Every third picture goes to `val/`, the others to `train/`.

# %%
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
random = np.random.default_rng(0)
digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images[:600], digits.target, strict=False)):
    ink, paper = random.integers(0, 140, 3), random.integers(190, 256, 3)
    strength = pixels[..., None] / 16
    picture = Image.fromarray((strength * ink + (1 - strength) * paper).astype(np.uint8))
    folder = Path("pictures", "train" if number % 3 else "val", NAMES[label])
    folder.mkdir(parents=True, exist_ok=True)
    size = int(random.integers(24, 49))
    picture.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number:04}.png")

for split in ("train", "val"):
    print(split, {folder.name: len(list(folder.iterdir())) for folder in sorted(Path("pictures", split).iterdir())})

# %%
figure, axes = plt.subplots(2, 10, figsize=(9, 2.2))
for column, name in zip(axes.T, NAMES, strict=True):
    column[0].set_title(name, fontsize=9)
    for axis, path in zip(column, sorted(Path("pictures", "train", name).iterdir()), strict=False):
        axis.imshow(Image.open(path))
        axis.axis("off")
plt.show()

# %% [markdown]
# ## The data module
#
# `ImageFolderDataModule` resizes pictures of any size and format to squares of `image_size` pixels. Mean and standard
# deviation of the colours are computed once from the training images. In every epoch each picture is shifted slightly
# (`augmentation`). Horizontal flips (`flip`) are disabled, because a mirrored digit is not a valid digit. For
# photographs, keep them enabled and choose 64 pixels or more.

# %%
data = ImageFolderDataModule("pictures", image_size=16, flip=False, batch_size=16, num_workers=0)
data.setup("fit")
print(data.num_classes, "classes, in the order of their folders:", ", ".join(data.class_names))
print("training images:", len(data.splits["train"].targets), " validation images:", len(data.splits["val"].targets))
print("mean:", [round(value, 3) for value in data.mean], " std:", [round(value, 3) for value in data.std])

# %% [markdown]
# ## A teacher and its student
#
# `quickstart.ipynb` explains the losses. Here both networks are trained on all training pictures; the student is
# smaller: `resnet8` has less than half the parameters of `resnet14`. With such short training the student may even
# exceed its teacher.


# %% tags=["measured"]
def train(module: HSAKDModule, epochs: int, checkpoint: str) -> float:
    """Train a module on the pictures, save it, and return its accuracy in percent after the last epoch."""
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


def recipe(epochs: int) -> dict[str, Any]:
    """Return the options of both modules."""
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    optimizer = partial(AdamW, lr=0.003)
    classes = data.num_classes
    return {"num_classes": classes, "branch_metrics_every": 0, "optimizer": optimizer, "lr_scheduler": schedule}


pl.seed_everything(0)
teacher = TeacherModule("resnet14", **recipe(4))
accuracy = {"teacher": train(teacher, 4, "teacher.ckpt")}
student = StudentModule("resnet8", teacher.network, **recipe(6))  # freezes the teacher
accuracy["student"] = train(student, 6, "student.ckpt")
for name, module in (("teacher", teacher), ("student", student)):
    size = sum(parameter.numel() for parameter in module.network.without_branches.parameters())
    print(f"{name}: {accuracy[name]:.1f} % of the validation pictures, {size} parameters without branches")

# %% [markdown]
# ## Export
#
# `export_student` writes a self-contained folder: `model.safetensors` and `config.json` for `load_student`,
# `model.pt2` for PyTorch without this package, and a model card. With `pip install 'hsakd_pl[export]'`, the format
# `onnx` adds a file for onnxruntime. The exported network has no branches and includes the class names and the
# normalisation. Before a file is kept, its outputs are compared with those of the trained network on validation
# pictures.

# %% tags=["measured"]
export = export_student("student.ckpt", "exported", formats=("safetensors", "pt2"), data=data)
print("compared over", export.checked)
for file in export.files:
    print(f"{file.path.name}: {1000 * file.megabytes:.0f} kB")

# %% [markdown]
# ## Predictions
#
# `load_student` needs only this folder. `transform` converts a picture of any size to the input of the network. First,
# predict all validation pictures from their files: the accuracy is the same as in training.

# %% tags=["measured"]
loaded = load_student("exported")


def predict(pictures: list[Image.Image]) -> torch.Tensor:
    """Return the class probabilities (B, N) of pictures of any size."""
    return loaded(torch.stack([loaded.transform(picture) for picture in pictures])).softmax(1)


paths = sorted(Path("pictures", "val").rglob("*.png"))
predicted = predict([open_image(path) for path in paths]).argmax(1).tolist()
correct = [loaded.class_names[label] == path.parent.name for path, label in zip(paths, predicted, strict=True)]
accuracy["exported"] = 100 * sum(correct) / len(correct)
print(f"exported student: {accuracy['exported']:.1f} % of {len(paths)} pictures")

# %% [markdown]
# Now some single pictures with their most probable classes. The last is not a digit: a network trained on ten classes
# still has to choose one of them, and may even be confident.

# %%
flower = Image.fromarray(load_sample_image("flower.jpg"))
pictures = [*map(open_image, paths[:: len(paths) // 11][:11]), flower]
figure, axes = plt.subplots(2, 6, figsize=(8, 3.4))
for axis, picture, row in zip(axes.flat, pictures, predict(pictures), strict=True):
    axis.imshow(picture)
    axis.set_title(f"{loaded.class_names[int(row.argmax())]}, {100 * float(row.max()):.0f} %", fontsize=9)
    axis.axis("off")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## From the command line
#
# The same steps with configuration files and run folders, which can be interrupted and resumed (for these digits, add
# `--data.init_args.flip false --data.init_args.image_size 16`):
#
# ```bash
# hsakd fit --config configs/images/teacher_joint_resnet32x4.yaml --data.init_args.root pictures
# hsakd fit --config configs/images/student_joint_resnet32x4-resnet8x4.yaml --data.init_args.root pictures
# hsakd export runs/images/student_joint_resnet32x4-resnet8x4 exported
# hsakd predict exported pictures/val
# ```
#
# The last command writes `predictions.csv`: for each picture its class, the probability, and the fraction of the four
# rotations for which this class is the most probable.
