# %% [markdown]
# # A teacher without a class head
#
# Foundation models such as DINOv2 have no classes: they return an *embedding*, a vector in which similar pictures are
# close to each other. `EmbeddingModule` distils it into a small student, from pictures without labels. Then a few
# labelled pictures are enough for a classifier.
#
# This notebook trains on scikit-learn's handwritten digits, without downloads, in about a minute on one CPU core:
#
# 1. a teacher without a head,
# 2. a student that learns the teacher's embedding from 1,257 pictures **without labels**,
# 3. classifiers from **50 labelled pictures**: from scratch, as a linear probe of the frozen student, and fine-tuned
#    from the student.

# %%
import logging
import warnings
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from hsakd_pl import BaselineModule, DigitsDataModule, EmbeddingModule, HSAKDModule, LinearProbeModule
from hsakd_pl.modules.neighbours import knn_accuracy

for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


class AccuracyCurve(pl.Callback):
    """Record ``val/acc`` in percent after each validation."""

    def __init__(self) -> None:
        self.percent: list[float] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.percent.append(100 * float(trainer.callback_metrics["val/acc"]))


def train(
    module: HSAKDModule, data: DigitsDataModule, epochs: int, validate_every: int, checkpoint: str | None = None
) -> list[float]:
    """Train a module, save its last weights if a ``checkpoint`` is named, and return the curve of its accuracy."""
    curve = AccuracyCurve()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        check_val_every_n_epoch=validate_every,
        callbacks=[curve],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    if checkpoint is not None:
        trainer.save_checkpoint(checkpoint)
    return curve.percent


def recipe(epochs: int, seed: int = 0, lr: float = 0.003) -> dict[str, Any]:
    """Seed weights and batches, and return the options of every module."""
    pl.seed_everything(seed, verbose=False)
    return {"optimizer": partial(AdamW, lr=lr), "lr_scheduler": partial(CosineAnnealingLR, T_max=epochs)}


# %% [markdown]
# ## The teacher
#
# A foundation model was trained on many other pictures. Its stand-in here is a resnet14 that is trained for five epochs
# on the digits with their labels, and whose head is then left out. It knows these digits better than a foundation model
# would, so read the results below as what a *good* teacher brings.

# %% tags=["measured"]
classifier = BaselineModule("resnet14", num_classes=10, **recipe(5))
print(f"before its head is left out: {train(classifier, DigitsDataModule(batch_size=32), 5, 5)[-1]:.1f} %")
teacher = classifier.network

# %% [markdown]
# ### With a DINO-like vision transformer
#
# This is the only cell to change for a model of timm (`pip install '.[timm]'`); nothing else names the teacher. With
# `pretrained`, timm downloads the weights, and states size and normalisation of the teacher's images.

# %%
USE_DINO = False  # True downloads 87 MB, and takes more than an hour on a CPU core
if USE_DINO:
    teacher_options: dict[str, Any] = {
        "teacher": "timm:vit_small_patch16_224.dino",
        "teacher_weights": "pretrained",
        "teacher_embedding": "class_token",  # or patch_mean
    }
else:
    teacher_options = {
        "teacher": teacher,
        "teacher_mean": "data",  # it was trained on images that are normalised like the student's
    }

# %% [markdown]
# For pictures of your own, replace `DigitsDataModule` in the next cell by `UnlabelledDataModule(root="pictures",
# labelled="sorted", image_size=224)` and give the student a smaller size, `student_size=64`. `root` is a folder of
# pictures in any arrangement, `labelled` one with a folder per class, which only measures.
#
# ## The student
#
# The student is a resnet8, whose last layer has the width of the teacher's embedding. Its loss is one minus the
# cosine of the two embeddings, plus their mean squared error. The labels of the training images are ignored.
#
# After each epoch, `val/acc` tells how well the student's embedding separates the classes of the test images: each one
# is given the class of its 20 nearest neighbours among the others.

# %% tags=["measured"]
student = EmbeddingModule("resnet8", **teacher_options, **recipe(12))
student_curve = train(student, DigitsDataModule(batch_size=32), 12, 1, checkpoint="student.ckpt")
print("k-NN accuracy of the student:", ", ".join(f"{percent:.1f} %" for percent in student_curve))

# %% [markdown]
# The same vote with other embeddings puts that into perspective. Digits are so clean that their pixels alone separate
# them well.

# %% tags=["measured"]
data = DigitsDataModule()
data.setup("test")
test = data.splits["test"]
images, _ = data.on_after_batch_transfer((test.images, test.targets), 0)
embeddings = {"pixels": images.flatten(1)}
with torch.no_grad():
    untrained = EmbeddingModule("resnet8", **teacher_options, **recipe(12))
    embeddings["untrained student"] = untrained.eval()(images)
    embeddings["teacher"] = student.teacher(images).embedding
knn = {name: 100 * float(knn_accuracy(vectors, test.targets, 20)) for name, vectors in embeddings.items()}
for name, percent in knn.items():
    print(f"k-NN accuracy, {name}: {percent:.1f} %")

plt.plot(range(1, 13), student_curve, "o-", label="student")
for (name, percent), style in zip(knn.items(), (":", "-.", "--"), strict=True):
    plt.axhline(percent, color="gray", linestyle=style, label=name)
plt.xlabel("epoch")
plt.ylabel("k-NN accuracy (%)")
plt.legend()
plt.show()

# %% [markdown]
# ## Fifty labels
#
# Now 50 of the training images have labels, five per class. Three classifiers, each with three seeds:
#
# - **from scratch**: an ordinary resnet8, as if there were no teacher;
# - **linear probe**: the student is frozen, and only a new linear layer is trained;
# - **fine-tuned**: an ordinary resnet8 that starts from the student, by `weights` and `new_head`, with a smaller
#   learning rate, which keeps more of what the student knows.

# %% tags=["measured"]
EPOCHS, SEEDS = 40, (0, 1, 2)
start: dict[str, Any] = {"weights": "student.ckpt"}
makers = {
    "from scratch": lambda seed: BaselineModule("resnet8", num_classes=10, **recipe(EPOCHS, seed)),
    "linear probe": lambda seed: LinearProbeModule("resnet8", 10, **start, **recipe(EPOCHS, seed)),
    "fine-tuned": lambda seed: BaselineModule(
        "resnet8", num_classes=10, new_head=True, **start, **recipe(EPOCHS, seed, lr=0.001)
    ),
}
accuracy: dict[str, list[float]] = {}
for name, make in makers.items():
    few = [DigitsDataModule(train_fraction=0.04, batch_size=8) for _ in SEEDS]
    accuracy[name] = [train(make(seed), data, EPOCHS, EPOCHS)[-1] for seed, data in zip(SEEDS, few, strict=True)]
    mean = sum(accuracy[name]) / len(SEEDS)
    print(f"{name}: {mean:.1f} %, seeds: {', '.join(f'{value:.1f} %' for value in accuracy[name])}")

# %%
for position, values in enumerate(accuracy.values()):
    plt.plot([position] * len(values), values, "o", color="C0", label=None if position else "one seed")
    plt.plot(position, sum(values) / len(values), "k_", markersize=30, label=None if position else "mean")
plt.xticks(range(len(accuracy)), list(accuracy))
plt.xlim(-0.5, len(accuracy) - 0.5)
plt.ylabel("test accuracy (%)")
plt.title("resnet8 with 50 labels")
plt.legend()
plt.show()

# %% [markdown]
# The 50 labels and the network are the same in all three; the difference comes from the 1,257 pictures without labels
# and the teacher. The seeds vary the classifiers' training, while teacher and student are the same for all of them.
#
# ## From the command line
#
# `hsakd fit` does the same with a folder of pictures, and writes a run whose checkpoint starts a classifier:
#
# ```bash
# hsakd fit --model EmbeddingModule --model.init_args.network resnet20 \
#   --model.init_args.teacher timm:vit_small_patch14_dinov2.lvd142m \
#   --model.init_args.teacher_weights pretrained --model.init_args.student_size 64 \
#   --data UnlabelledDataModule --data.init_args.root pictures --data.init_args.labelled sorted \
#   --data.init_args.image_size 224 --trainer.default_root_dir runs/dino
# hsakd fit --model BaselineModule --model.init_args.network resnet20 \
#   --model.init_args.weights runs/dino/last.ckpt --model.init_args.new_head true \
#   --data ImageFolderDataModule --data.init_args.root sorted --trainer.default_root_dir runs/classifier
# ```
#
# *Teachers without a head* in the documentation has the options, and `hsakd export runs/dino` writes the student for a
# search by similarity.
