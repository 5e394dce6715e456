# %% [markdown]
# # HSAKD step by step
#
# In knowledge distillation, a small student learns from the class probabilities of a large teacher. HSAKD (Yang, An,
# Cai and Xu, IJCAI 2021, [arXiv 2107.13715](https://arxiv.org/abs/2107.13715)) adds two ideas:
#
# 1. **A richer task.** Each image is shown in four rotations, and the network predicts class *and* rotation together:
#    one of 4N *joint labels* instead of one of N classes.
# 2. **A hierarchy.** An *auxiliary branch* with a classifier of joint labels follows each stage of the network, so that
#    the student learns from the teacher at several depths.
#
# The branches are only used in training. The final network is the ordinary one with its class head.
#
# This notebook trains a teacher, a student alone and a distilled student on scikit-learn's handwritten digits, in
# about a minute on one CPU core.

# %%
import logging
import warnings
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from hsakd_pl import (
    ROTATIONS,
    BaselineModule,
    DigitsDataModule,
    HSAKDModule,
    StudentModule,
    TeacherModule,
    create_network,
)

for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")

# %% [markdown]
# ## Joint labels
#
# An image of class y, rotated counter-clockwise by r times 90 degrees, has the joint label 4y + r. `ROTATIONS` maps B
# images to 4B: first all unrotated images, then all images rotated by 90 degrees, and so on. Its method `joint_labels`
# does the same for the labels. Rotations are the transformations of the paper; others are possible.

# %%
data = DigitsDataModule()
data.setup("fit")
images, labels = data.splits["train"].images[:5], data.splits["train"].targets[:5]
rotated, joint = ROTATIONS(images), ROTATIONS.joint_labels(labels)

figure, axes = plt.subplots(4, 5, figsize=(7, 6.5))
for axis, image, label in zip(axes.flat, rotated, joint.tolist(), strict=True):
    axis.imshow(image[0], cmap="gray_r")
    axis.set_title(f"class {label // 4}, joint {label}", fontsize=8)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## A network with branches
#
# The branch after stage l repeats the later stages with separate weights and ends in a classifier of joint labels. A
# resnet of this kind has three stages, hence three branches. The output contains the class logits (B, N) and, for each
# branch, the joint logits (B, 4N).

# %%
normalised, _ = data.on_after_batch_transfer((images, labels), 0)
output = create_network("resnet14", num_classes=10)(ROTATIONS(normalised))
print("class logits of 5 images in 4 rotations:", tuple(output.logits.shape))
print("joint logits of each branch:", [tuple(logits.shape) for logits in output.joint_logits])

# %% [markdown]
# ## Training
#
# A method is a LightningModule and a data set a LightningDataModule, so a plain `Trainer` trains them. The callback
# below records the accuracy of the class head on the 540 unrotated test images after each epoch. The result of a run
# is the accuracy after its *last* epoch. By default, modules use the recipe of the paper: 240 epochs of SGD. For a few
# hundred steps, AdamW with a cosine schedule is more stable.


# %%
class AccuracyCurve(pl.Callback):
    """Record the accuracy in percent after each epoch."""

    def __init__(self) -> None:
        self.percent: list[float] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.percent.append(100 * float(trainer.callback_metrics["val/acc"]))


def train(module: HSAKDModule, data: DigitsDataModule, epochs: int) -> list[float]:
    """Train a module and return its accuracy after each epoch."""
    curve = AccuracyCurve()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[curve],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    print(f"{type(module).__name__}: {curve.percent[-1]:.1f} % after {epochs} epochs")
    for name, value in sorted(trainer.callback_metrics.items()):
        if "branch" in name and "top5" not in name:
            print(f"  {name}: {100 * float(value):.1f} %")
    return curve.percent


def recipe(epochs: int) -> dict[str, Any]:
    """Seed weights and batches, and return the options of every module."""
    pl.seed_everything(0, verbose=False)
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    return {"num_classes": 10, "optimizer": partial(AdamW, lr=0.003), "lr_scheduler": schedule}


# %% [markdown]
# ## The teacher
#
# The teacher minimises the cross-entropy of the class head on the unrotated images, plus the cross-entropy of each
# branch on the joint labels of all four rotations. Here backbone and branches are trained together; with
# `freeze_backbone=True` and the `weights` of a trained network, only the branches are trained.
#
# After the last epoch the branches are evaluated, too: `joint` is their accuracy on the 40 joint labels, `class` the
# accuracy on the 10 classes when the joint logits of a class are summed over the rotations. Both are measured over all
# four rotations, so they are not comparable with the accuracy of the class head. A 6 rotated by 180 degrees looks like
# a 9, so perfect accuracy is impossible.

# %% tags=["measured"]
teacher = TeacherModule("resnet14", **recipe(3))
teacher_curve = train(teacher, DigitsDataModule(), epochs=3)

# %% [markdown]
# ## The student alone
#
# The students see only 50 labelled digits, 4 % of the training images, in batches of 8. The first one has no teacher:
# plain cross-entropy, no rotations, no branches.

# %% tags=["measured"]
alone = BaselineModule("resnet8", **recipe(25))
alone_curve = train(alone, DigitsDataModule(train_fraction=0.04, batch_size=8), epochs=25)

# %% [markdown]
# ## The student distilled
#
# The same network and the same 50 digits, now with the teacher. Its loss has three terms, each of weight 1:
#
# - `loss_ce`: cross-entropy of the class head on the labels, unrotated images;
# - `loss_kd`: divergence of the class logits from the teacher's, all rotations;
# - `loss_joint_kd`: divergence of each branch's joint logits from those of the teacher's branch at the same depth.
#
# The divergences use a temperature of 3, as in the paper. The teacher is frozen and in eval mode. Only `loss_ce` uses
# the labels.

# %% tags=["measured"]
distilled = StudentModule("resnet8", teacher.network, **recipe(25), branch_metrics_every=0)
distilled_curve = train(distilled, DigitsDataModule(train_fraction=0.04, batch_size=8), epochs=25)

# %% [markdown]
# ## The gain from the teacher

# %% tags=["measured"]
accuracy = {"teacher": teacher_curve[-1], "alone": alone_curve[-1], "distilled": distilled_curve[-1]}
for name, percent in accuracy.items():
    print(f"{name:10} {percent:5.1f} %")

plt.plot(range(1, 26), alone_curve, label="student alone")
plt.plot(range(1, 26), distilled_curve, label="student distilled")
plt.axhline(accuracy["teacher"], color="gray", linestyle="--", label="teacher, all labels")
plt.xlabel("epoch")
plt.ylabel("test accuracy (%)")
plt.legend()
plt.show()

# %% [markdown]
# The teacher saw all 1,257 labels, the students 50: the distance between the two curves is the gain from the teacher.
# Each curve is a single short run; a claim needs several seeds and the schedules in `configs/`.
#
# For inference the branches are not needed: `distilled.network.without_branches` is the student, a plain network with
# as many parameters as the one trained alone.

# %%
parameters = {
    "alone": sum(parameter.numel() for parameter in alone.network.parameters()),
    "distilled": sum(parameter.numel() for parameter in distilled.network.without_branches.parameters()),
}
print(parameters)
