# %% [markdown]
# # A loss term of your own
#
# A method in `hsakd_pl` is two functions: `losses` passes a batch once through its networks, and `terms` makes named
# loss terms of what they give. The base class weights them, adds them up, logs each one, and does the rest (optimizer,
# schedule, evaluation). So a new idea is a subclass with a few lines. As an example, this notebook adds *attention
# transfer* (Zagoruyko and Komodakis, ICLR 2017, [arXiv 1612.03928](https://arxiv.org/abs/1612.03928)) to HSAKD and
# compares the two, in about a minute on one core.

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
# The attention map of a stage says where its features are strong: the sum of their squares over the channels, one
# number a position, scaled to length 1 for each image. The term asks the student to look where the teacher looks: it is
# the squared distance of the two maps, averaged over the images and summed over the stages. Student and teacher may
# differ in channels, because these are averaged away, but not in the size of the maps.


# %%
def attention_map(features: Tensor) -> Tensor:
    """Sum of squares over the channels, of length 1 an image: (B, C, H, W) -> (B, H * W)."""
    return F.normalize(features.norm(dim=1).square().flatten(1))


def attention_distance(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Squared distance of the attention maps, averaged over the images and summed over the stages, a scalar."""
    pairs = zip(student, teacher, strict=True)
    return total((attention_map(ours) - attention_map(theirs)).square().sum(1).mean() for ours, theirs in pairs)


# %% [markdown]
# A function like this can be checked before anything is trained. The distance of anything from itself is 0, whatever
# its scale, and maps that share no position, of length 1 each, are at squared distance 2.

# %%
features = torch.rand(2, 8, 4, 4)
left, right = torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 4, 4)
left[..., :2], right[..., 2:] = 1, 1
print(f"itself, three times as strong: {attention_distance([features], [3 * features]):.3f}")
print(f"left against right: {attention_distance([left], [right]):.3f}")

# %% [markdown]
# ## The term in a module
#
# `super().terms(...)` gives HSAKD's three terms; the new one is added under a name of its own, and `loss_weights` gets
# its weight (a term without one counts 1). `student` and `teacher` are all that the one pass through both networks
# gave: `logits`, `joint_logits`, the `features` after each stage and the `embedding` before the last layer. So the term
# costs no second pass, and no statistics of a batch norm move twice. It covers all four rotations, as HSAKD's do.


# %%
class AttentionStudent(StudentModule):
    """HSAKD and attention transfer."""

    def __init__(self, *args: Any, attention_weight: float = 10.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_weights["loss_attention"] = attention_weight

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        attention = attention_distance(student.features, teacher.features)
        return super().terms(student, teacher, labels) | {"loss_attention": attention}


# %% [markdown]
# ## A teacher for both
#
# `quickstart.ipynb` explains this part: a teacher with branches on all 1,257 training digits.


# %% tags=["measured"]
def train(module: HSAKDModule, data: DigitsDataModule, epochs: int) -> dict[str, float]:
    """Fit a module; returns what was logged in the last epoch."""
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
    """Options of every module, after seeding its weights and batches."""
    pl.seed_everything(0, verbose=False)
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    optimizer = partial(AdamW, lr=0.003)
    return {"num_classes": 10, "branch_metrics_every": 0, "optimizer": optimizer, "lr_scheduler": schedule}


teacher = TeacherModule("resnet14", **recipe(3))
print(f"teacher: {100 * train(teacher, DigitsDataModule(), epochs=3)['val/acc']:.1f} %")

# %% [markdown]
# ## The comparison
#
# Two students with 50 labels, alike in everything but the new term: the same seed gives them the same first weights and
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
# Every term was logged by its name. Before the accuracies are compared, look whether the term did what it is for: how
# far are the students' attention maps from the teacher's on the *test* images, which neither has seen?

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
# The left picture says whether the student looks where the teacher looks; the right one whether that helped. There, one
# run each on 540 test images cannot tell a difference of a few points from chance: repeat it with several seeds, then
# try other weights.
#
# ## From the command line
#
# In a file `mine.py`, the class is ready for YAML. A weight in the constructor is an option there:
#
# ```yaml
# model:
#   class_path: mine.AttentionStudent
#   init_args: {network: resnet8, teacher: resnet14, teacher_weights: teacher.ckpt, attention_weight: 10.0}
# data: {class_path: hsakd_pl.DigitsDataModule}
# trainer: {max_epochs: 20, default_root_dir: runs/attention}
# ```
