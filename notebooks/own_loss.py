# %% [markdown]
# # A loss term of your own
#
# A method in `hsakd_pl` consists of two functions: `losses` runs one forward pass per batch, and `terms` computes
# named loss terms from the outputs. The base class weights, sums and logs the terms and provides everything else
# (optimizer, schedule, evaluation), so that a new idea is a short subclass. As an example, this notebook adds
# *attention transfer* (Zagoruyko and Komodakis, ICLR 2017, [arXiv 1612.03928](https://arxiv.org/abs/1612.03928)) to
# HSAKD and compares the two, in about a minute on one core.

# %%
import logging
import warnings
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from hsakd_pl import DigitsDataModule, HSAKDModule, StudentModule, TeacherModule
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import total

for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")

# %% [markdown]
# ## The term as a function
#
# The attention map of a stage shows where its features are strong: the sum of squares over the channels, one number
# per position, normalised to length 1 for each image. The loss term is the squared distance between the maps of
# student and teacher, averaged over the images and summed over the stages. The two networks may have different numbers
# of channels, because the sum removes the channels, but their maps must have equal size.


# %%
def attention_map(features: Tensor) -> Tensor:
    """Return the normalised attention of each image: (B, C, H, W) -> (B, H * W)."""
    return F.normalize(features.norm(dim=1).square().flatten(1))


def attention_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Return the squared distance between attention maps, averaged over images and summed over stages, a scalar."""
    distances = []
    for student_map, teacher_map in zip(student, teacher, strict=True):
        difference = attention_map(student_map) - attention_map(teacher_map)
        distances.append(difference.square().sum(1).mean())
    return total(distances)


# %% [markdown]
# Such a function can be tested without any training. The distance of a map from itself is 0, whatever its scale, and
# the squared distance between normalised maps that do not overlap is 2.

# %%
features = torch.rand(2, 8, 4, 4)
left = torch.zeros(2, 8, 4, 4)
left[..., :2] = 1
right = torch.zeros(2, 8, 4, 4)
right[..., 2:] = 1
print(f"itself, three times as strong: {attention_distance([features], [3 * features]):.3f}")
print(f"left against right: {attention_distance([left], [right]):.3f}")

# %% [markdown]
# ## The term in a module
#
# `super().terms(...)` returns HSAKD's three terms; the subclass adds a fourth and sets its weight with
# `set_loss_weights` (the default is 1). `student` and `teacher` are the outputs of the single forward pass through
# both networks: `logits`, `joint_logits`, the `features` after each stage and the `embedding` before the last layer.
# So the term needs no second forward pass, and batch norm statistics are updated only once. Like HSAKD's terms, it
# covers all four rotations.


# %%
class AttentionStudent(StudentModule):
    """Minimise HSAKD's loss and the distance between attention maps."""

    def __init__(self, *args: Any, attention_weight: float = 10.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_loss_weights(loss_attention=attention_weight)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        attention = attention_distance(student.features, teacher.features)
        return super().terms(student, teacher, labels) | {"loss_attention": attention}


# %% [markdown]
# ## A teacher for both
#
# This teacher with branches is trained on all 1,257 training digits; `quickstart.ipynb` explains it.


# %% tags=["measured"]
def train(module: HSAKDModule, data: DigitsDataModule, epochs: int) -> dict[str, float]:
    """Train a module and return the metrics of the last epoch."""
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
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def recipe(epochs: int) -> dict[str, Any]:
    """Seed weights and batches, and return the options of every module."""
    pl.seed_everything(0, verbose=False)
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    optimizer = partial(AdamW, lr=0.003)
    return {"num_classes": 10, "branch_metrics_every": 0, "optimizer": optimizer, "lr_scheduler": schedule}


teacher = TeacherModule("resnet14", **recipe(3))
print(f"teacher: {100 * train(teacher, DigitsDataModule(), epochs=3)['val/acc']:.1f} %")

# %% [markdown]
# ## The comparison
#
# Two students with 50 labels differ only in the new term: with the same seed, they have the same initial weights and
# the same batches.

# %% tags=["measured"]
few: dict[str, Any] = {"train_fraction": 0.04, "batch_size": 8}
students: dict[str, type[StudentModule]] = {"HSAKD": StudentModule, "HSAKD and attention": AttentionStudent}
trained, accuracy = {}, {}
for name, kind in students.items():
    trained[name] = kind("resnet8", teacher.network, **recipe(20))
    logged = train(trained[name], DigitsDataModule(**few), epochs=20)
    accuracy[name] = 100 * logged["val/acc"]
    terms = [f"{term} {value:.3f}" for term, value in logged.items() if term.startswith("train/")]
    print(f"{name}: {accuracy[name]:.1f} %; {', '.join(terms)}")

# %% [markdown]
# Every term is logged under its name. Before comparing accuracies, check that the term has the intended effect: how
# far are the students' attention maps from the teacher's on the *test* images?

# %% tags=["measured"]
data = DigitsDataModule()
data.setup("test")
test = data.splits["test"]
images, _ = data.on_after_batch_transfer((test.images, test.targets), 0)
distance = {}
with torch.no_grad():
    teacher_maps = teacher.network.eval().outputs(images).features
    for name, module in trained.items():
        student_maps = module.network.eval().outputs(images).features
        distance[name] = float(attention_distance(student_maps, teacher_maps))

figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for axis, values, title in zip(axes, (distance, accuracy), ("attention distance", "test accuracy (%)"), strict=True):
    axis.bar(list(values), list(values.values()))
    axis.set_title(title)
plt.show()
for name, value in distance.items():
    print(f"{name}: attention distance {value:.3f}")

# %% [markdown]
# The left plot shows whether the student attends to the same positions as the teacher, the right one whether that
# helps. With one run each and 540 test images, a difference of a few points may be chance: repeat the comparison with
# several seeds before trying other weights.
#
# ## From the command line
#
# Save the class in a file `mine.py` to use it in YAML, where the weight in the constructor is an option. Without a
# constructor, set `loss_weights: {loss_attention: 10.0}` instead.
#
# ```yaml
# model:
#   class_path: mine.AttentionStudent
#   init_args: {network: resnet8, teacher: resnet14, teacher_weights: teacher.ckpt, attention_weight: 10.0}
# data: {class_path: hsakd_pl.DigitsDataModule}
# trainer: {max_epochs: 20, default_root_dir: runs/attention}
# ```
