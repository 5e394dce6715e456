# %% [markdown]
# # A method of your own on the bench
#
# `hsakd_pl.methods` holds fifteen methods that distill a teacher, each in a file of its own: a pure function for the
# loss, and a module of a few lines that derives from `DistilledModule`. A method of yours has the same two parts. This
# notebook writes one, tests it, and compares it with knowledge distillation (KD; Hinton et al., 2015) over three seeds,
# in about half a minute on one CPU core.
#
# The example is *channel-wise distillation* (Shu et al., ICCV 2021, [arXiv
# 2011.13256](https://arxiv.org/abs/2011.13256)), made for segmentation and here tried on small digits.

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
# ## The loss, a pure function
#
# Each channel of a feature map says where in the image its feature is. A softmax over the H x W positions makes a
# distribution of that, whatever the channel's mean, and the student's distribution is to come close to the teacher's:
# the divergence of knowledge distillation, over positions in place of classes. So `kd_loss`, which the package has,
# does the work, once each channel of each image is a row.


# %%
def channel_loss(student_maps: list[Tensor], teacher_maps: list[Tensor], temperature: float = 4.0) -> Tensor:
    """Sum over the stages the mean divergence of where channels are active: L maps (B, C, H, W) twice -> a scalar."""
    pairs = zip(student_maps, teacher_maps, strict=True)
    rows = ([maps.flatten(0, 1).flatten(1) for maps in pair] for pair in pairs)  # (B * C, H * W)
    return total(kd_loss(ours, theirs, temperature) for ours, theirs in rows)


# %% [markdown]
# ## The module
#
# `DistilledModule` passes the images once through student and teacher, names the terms cross-entropy (`loss_ce`) and KD
# (`loss_kd`), and does the rest: optimizer, schedule, logging, checkpoints. A method says what it adds and with what
# weight. Its options stand before `**rest`. This one keeps KD's two terms with KD's weights, so that the comparison
# shows what the new term adds.


# %%
class ChannelModule(DistilledModule):
    """Minimises 0.1 CE + 0.9 KD + ``channel_weight`` times the divergence of channels after all stages."""

    def __init__(
        self,
        network: Any,
        teacher: Any,
        channel_weight: float = 1.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        **rest: Any,
    ) -> None:
        own = {"loss_channel": channel_weight}
        super().__init__(network, teacher, own, ce_weight=ce_weight, kd_weight=kd_weight, **rest)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        channel = channel_loss(student.features, teacher.features)
        return super().terms(student, teacher, labels) | {"loss_channel": channel}


# %% [markdown]
# ## Its test
#
# A loss that runs may still be wrong, and a training hides it well. So the facts that define it come first, each as an
# `assert`: in a file `test_channel.py`, pytest runs these functions as they stand.


# %%
def test_equal_maps_are_at_distance_zero_whatever_is_added_to_a_channel() -> None:
    maps = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(channel_loss([maps], [maps + torch.randn(2, 3, 1, 1)]), torch.tensor(0.0))


def test_it_equals_the_definition_written_out() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = 0.0
    for image in range(2):
        for channel in range(3):
            ours, theirs = (maps[image, channel].flatten() / 4 for maps in (student, teacher))
            p, q = theirs.exp() / theirs.exp().sum(), ours.exp() / ours.exp().sum()
            expected += float((p * (p / q).log()).sum()) * 4**2 / (2 * 3)
    assert abs(float(channel_loss([student], [teacher])) - expected) < 1e-5


def test_only_the_student_gets_gradients() -> None:
    module = ChannelModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
    module.training_step((torch.randn(4, 3, 16, 16), torch.arange(4)), 0).backward()
    assert all(parameter.grad is not None for parameter in module.network.parameters())
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


torch.manual_seed(0)
for test in (
    test_equal_maps_are_at_distance_zero_whatever_is_added_to_a_channel,
    test_it_equals_the_definition_written_out,
    test_only_the_student_gets_gradients,
):
    test()
    print("passed:", test.__name__)

# %% [markdown]
# ## A teacher, trained alone
#
# These methods learn from an ordinary network, without branches and rotations.


# %% tags=["measured"]
def train(module: HSAKDModule, data: DigitsDataModule, epochs: int) -> float:
    """Fit a module; returns its test accuracy in percent after the last epoch."""
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
    """Options of every module."""
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    return {"num_classes": 10, "optimizer": partial(AdamW, lr=0.003), "lr_scheduler": schedule}


pl.seed_everything(0, verbose=False)
teacher = BaselineModule("resnet14", **recipe(5))
print(f"teacher: {train(teacher, DigitsDataModule(batch_size=32), 5):.1f} %")

# %% [markdown]
# ## The comparison
#
# A student with 50 labels, alone, by KD, and by the new method. Within a seed all three start from the same weights and
# see the same batches, so that differences within a seed say more than the means: they are paired.

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
plt.title("a student with 50 labels: each line one seed")
plt.legend()
plt.show()

# %% [markdown]
# ## Reading it
#
# Distillation lifts the student; the new term moves it by less than two seeds differ. So nothing speaks for the term on
# these digits, at this weight. That is a usual first result, and the reason to have a bench: KD is hard to beat, and
# one seed says little. The next steps are other weights, more seeds, and a task with larger maps, which the method was
# made for.
#
# ## From the command line
#
# In a file `mine.py` the class is ready for configurations, with every option of its constructor and of its base.
#
# ```yaml
# model:
#   class_path: mine.ChannelModule
#   init_args: {network: resnet8, teacher: resnet14, teacher_weights: teacher.ckpt, channel_weight: 1.0}
# data: {class_path: hsakd_pl.DigitsDataModule}
# trainer: {max_epochs: 25, default_root_dir: runs/channels}
# ```
#
# On the bench it is a row of a table, `mine.csv`, here for the digits:
#
# ```csv
# method,recipe,class,options,data,resnet14-resnet8
# teacher,digits/baseline_{teacher},hsakd_pl.BaselineModule,,,-
# KD,digits/kd_{teacher}-{student},hsakd_pl.methods.KDModule,image_size: 16,,-
# channels,digits/channels_{teacher}-{student},mine.ChannelModule,image_size: 16; channel_weight: 1.0,,-
# ```
#
# `hsakd bench mine.csv --seeds 0-2` trains the teacher, then every method with every seed, goes on with what was
# interrupted, and shows the column. `hsakd bench classic mine.csv` adds rows for CIFAR-100 to the table of the field,
# with the published numbers beside ours.
