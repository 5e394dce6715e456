# %% [markdown]
# # Your own method in a comparison
#
# `hsakd_pl.methods` contains fifteen methods, one file each: a pure function for the loss, and a short module that
# derives from `DistilledModule`. A new method has the same two parts. This notebook writes one, tests it, and compares
# it with knowledge distillation (KD; Hinton et al., 2015) over three seeds, in about half a minute on one CPU core.
#
# The example is *channel-wise distillation* (Shu et al., ICCV 2021, [arXiv
# 2011.13256](https://arxiv.org/abs/2011.13256)), a method for segmentation that is applied to small digits here.

# %%
import logging
import warnings
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from hsakd_pl import BaselineModule, DigitsDataModule, HSAKDModule
from hsakd_pl.methods import DistilledModule, KDModule
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import kd_loss, total

for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")

# %% [markdown]
# ## The loss as a pure function
#
# Each channel of a feature map shows where in the image its feature occurs. A softmax over the H x W positions turns
# it into a distribution, independent of the channel's mean, and the student's distribution should match the teacher's.
# This is the divergence of knowledge distillation over positions instead of classes, so `kd_loss` can be reused with
# one row per channel and image.


# %%
def channel_loss(student_maps: list[Tensor], teacher_maps: list[Tensor], temperature: float = 4.0) -> Tensor:
    """Return the mean divergence of the channels, summed over stages: lists of L maps (B, C, H, W) -> a scalar."""
    divergences = []
    for student_map, teacher_map in zip(student_maps, teacher_maps, strict=True):
        student_rows = student_map.flatten(0, 1).flatten(1)  # (B * C, H * W)
        teacher_rows = teacher_map.flatten(0, 1).flatten(1)
        divergences.append(kd_loss(student_rows, teacher_rows, temperature))
    return total(divergences)


# %% [markdown]
# ## The module
#
# `DistilledModule` runs one forward pass through student and teacher, computes the terms cross-entropy (`loss_ce`) and
# KD (`loss_kd`), and provides everything else: optimizer, schedule, logging, checkpoints. A method adds its own terms
# and their weights. This one keeps KD's two terms with KD's weights, so that the comparison shows the effect of the
# new term.


# %%
class ChannelModule(DistilledModule):
    """Minimise 0.1 CE + 0.9 KD + ``channel_weight`` times the divergence of the channels after all stages."""

    def __init__(
        self,
        network: Any,
        teacher: Any,
        channel_weight: float = 1.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, kd_weight=kd_weight, **options)
        self.set_loss_weights(loss_channel=channel_weight)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        channel = channel_loss(student.features, teacher.features)
        return super().terms(student, teacher, labels) | {"loss_channel": channel}


# %% [markdown]
# ## Tests
#
# A loss can be wrong without any error, and training hides mistakes well. So first test the properties that define it.
# In a file `test_channel.py`, pytest runs these functions unchanged.


# %%
def test_channel_loss_ignores_the_mean_of_a_channel() -> None:
    maps = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(channel_loss([maps], [maps + torch.randn(2, 3, 1, 1)]), torch.tensor(0.0))


def test_channel_loss_equals_its_definition() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = 0.0
    for image in range(2):
        for channel in range(3):
            p = (teacher[image, channel].flatten() / 4).softmax(0)
            q = (student[image, channel].flatten() / 4).softmax(0)
            expected += float((p * (p / q).log()).sum()) * 4**2 / (2 * 3)
    assert abs(float(channel_loss([student], [teacher])) - expected) < 1e-5


def test_channel_module_trains_only_the_student() -> None:
    module = ChannelModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
    module.training_step((torch.randn(4, 3, 16, 16), torch.arange(4)), 0).backward()
    assert all(parameter.grad is not None for parameter in module.network.parameters())
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


torch.manual_seed(0)
for test in (
    test_channel_loss_ignores_the_mean_of_a_channel,
    test_channel_loss_equals_its_definition,
    test_channel_module_trains_only_the_student,
):
    test()
    print("passed:", test.__name__)

# %% [markdown]
# ## A teacher trained alone
#
# The teacher of these methods is an ordinary network, without branches and rotations.


# %% tags=["measured"]
def train(module: HSAKDModule, data: DigitsDataModule, epochs: int) -> float:
    """Train a module and return its test accuracy in percent after the last epoch."""
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
    return 100 * float(trainer.callback_metrics["val/acc"])


def recipe(epochs: int) -> dict[str, Any]:
    """Return the options of every module."""
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    return {"num_classes": 10, "optimizer": partial(AdamW, lr=0.003), "lr_scheduler": schedule}


pl.seed_everything(0, verbose=False)
teacher = BaselineModule("resnet14", **recipe(5))
print(f"teacher: {train(teacher, DigitsDataModule(batch_size=32), 5):.1f} %")

# %% [markdown]
# ## The comparison
#
# A student with 50 labels is trained alone, with KD, and with the new method. For each seed all three start from the
# same weights and see the same batches. The runs are paired, so differences within a seed are more informative than
# the means.

# %% tags=["measured"]
EPOCHS, SEEDS = 25, (0, 1, 2)
makers = {
    "alone": lambda: BaselineModule("resnet8", **recipe(EPOCHS)),
    "KD": lambda: KDModule("resnet8", teacher.network, **recipe(EPOCHS)),
    "KD + channels": lambda: ChannelModule("resnet8", teacher.network, **recipe(EPOCHS)),
}
accuracy: dict[str, list[float]] = {name: [] for name in makers}
for seed in SEEDS:
    for name, make in makers.items():
        pl.seed_everything(seed, verbose=False)
        accuracy[name].append(train(make(), DigitsDataModule(train_fraction=0.04, batch_size=8), EPOCHS))

for name, values in accuracy.items():
    mean = sum(values) / len(values)
    print(f"{name:14} {mean:.1f} %, seeds: {', '.join(f'{value:.1f} %' for value in values)}")

# %%
for seed in SEEDS:
    plt.plot(list(accuracy), [values[seed] for values in accuracy.values()], "o-", color="0.6")
plt.plot(list(accuracy), [sum(values) / len(values) for values in accuracy.values()], "D", label="mean")
plt.ylabel("test accuracy (%)")
plt.title("a student with 50 labels: one line per seed")
plt.legend()
plt.show()

# %% [markdown]
# ## Interpretation
#
# Distillation improves the student; the effect of the new term is smaller than the difference between two seeds. So
# there is no evidence for the term on these digits with this weight. This is a common first result: KD is hard to
# beat, and a single seed is not conclusive. The next steps are other weights, more seeds, and a task with larger
# feature maps, for which the method was designed.
#
# ## From the command line
#
# Save the class in a file `mine.py` to use it in configurations, with all options of its constructor and of its base.
#
# ```yaml
# model:
#   class_path: mine.ChannelModule
#   init_args: {network: resnet8, teacher: resnet14, teacher_weights: teacher.ckpt, channel_weight: 1.0}
# data: {class_path: hsakd_pl.DigitsDataModule}
# trainer: {max_epochs: 25, default_root_dir: runs/channels}
# ```
#
# For `hsakd bench`, add a row to a table, `mine.csv`, here for the digits:
#
# ```csv
# method,recipe,class,options,data,resnet14-resnet8
# teacher,digits/baseline_{teacher},hsakd_pl.BaselineModule,,,-
# KD,digits/kd_{teacher}-{student},hsakd_pl.methods.KDModule,image_size: 16,,-
# channels,digits/channels_{teacher}-{student},mine.ChannelModule,image_size: 16; channel_weight: 1.0,,-
# ```
#
# `hsakd bench mine.csv --seeds 0-2` trains the teacher, then every method with every seed, resumes interrupted runs,
# and prints the table. `hsakd bench classic mine.csv` adds rows for CIFAR-100 to the table of published methods and
# compares measured with published numbers.
