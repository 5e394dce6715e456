"""Contrastive representation distillation (CRD; Tian et al., ICLR 2020): tell an image from those of other classes."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.data.base import ImageDataModule
from hsakd_pl.data.seeding import CONTRAST, derive_seed
from hsakd_pl.errors import UsageError, require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks.network import outputs_of
from hsakd_pl.ops import full_precision, total
from hsakd_pl.signatures import Unpack

EPSILON = 1e-7  # added to the noise, as in the published code
MEMORY = ("memory_student", "memory_teacher", "normalizers")  # attributes of ContrastMemory
BANK_SEED = 0  # seed of the initial banks, which are equal on all devices


@full_precision
def contrast_loss(scores: Tensor, samples: int) -> Tensor:
    r"""Return the contrastive loss of scores, a scalar (Eq. 9 to 11 of the paper).

    .. math:: \overline{-\log h(s_0) - \sum_{k=1}^{K} \log \left( 1 - h(s_k) \right)}, \quad
        h(s) = \frac{s}{s + K / n}

    n is the number of training images, K that of negatives, and the mean is over images. A score is
    exp(cosine / temperature) of one network's embedding and a row of the other's bank, divided by its normaliser.

    Source: Tian et al., ICLR 2020.

    Args:
        scores: normalised scores (B, K + 1), those of the positive pairs in the first column.
        samples: number of training images.

    Returns:
        Loss, a scalar.

    Examples:
        >>> contrast_loss(torch.tensor([[100.0, 0.001]]), samples=10) < 0.1
        tensor(True)
    """
    pair_scores = scores[:, 0]
    negative_scores = scores[:, 1:]
    noise = negative_scores.shape[1] / samples
    pair_log = (pair_scores / (pair_scores + (noise + EPSILON))).log()
    negative_log = (noise / (negative_scores + (noise + EPSILON))).log()
    return -(pair_log.sum() + negative_log.sum()) / len(scores)


@full_precision
def contrast_scores(embedding: Tensor, memory: Tensor, contrast: Tensor, temperature: float) -> Tensor:
    """Return exp(cosine / temperature), (B, K + 1), of embeddings with rows of a bank.

    Args:
        embedding: normalised embeddings (B, D).
        memory: bank (samples, D).
        contrast: indices (B, K + 1) of the rows.
        temperature: temperature of the cosines.
    """
    cosines = (embedding @ memory.T).gather(1, contrast)
    return (cosines / temperature).exp()


class ContrastMemory(nn.Module):
    """Score embeddings against banks (samples, width) of the other network's embeddings, and update the banks.

    The linear embeddings of both networks are trained. The first call fixes the ``normalizers`` (2,) of the student's
    and the teacher's scores. Banks and normalizers are part of the state, but not buffers, whose averages
    ``WeightAveraging`` would compute: it copies the module before the data tell the size of the banks.

    Args:
        widths: widths of the student's and the teacher's embedding.
        samples: number of training images.
        width: width of the linear embeddings.
        temperature: temperature of the cosines.
        momentum: part of a bank's row that an update keeps.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    normalizers: Tensor

    def __init__(self, widths: tuple[int, int], samples: int, width: int, temperature: float, momentum: float) -> None:
        super().__init__()
        student_width, teacher_width = widths
        self.embed_student = nn.Linear(student_width, width)
        self.embed_teacher = nn.Linear(teacher_width, width)
        self.temperature = temperature
        self.momentum = momentum
        self.memory_student = torch.empty(0, width)
        self.memory_teacher = torch.empty(0, width)
        self.normalizers = torch.zeros(2)
        self.resize(samples)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ContrastMemory":
        for name in MEMORY:
            setattr(self, name, fn(getattr(self, name)))
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in MEMORY:
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in MEMORY:
            key = prefix + name
            if key in state_dict:
                setattr(self, name, state_dict[key].detach().clone().to(self.normalizers))
            elif strict:
                missing_keys.append(key)
            if key in unexpected_keys:
                unexpected_keys.remove(key)

    def resize(self, samples: int) -> None:
        """Initialise both banks for a number of training images, unless they have that size."""
        if samples == len(self.memory_student):
            return
        width = self.embed_student.out_features
        generator = torch.Generator().manual_seed(BANK_SEED)
        for name in (
            "memory_student",
            "memory_teacher",
        ):  # uniform, with a mean square length of 1, as in the published code
            uniform = 2 * torch.rand(samples, width, generator=generator, device="cpu") - 1
            bank = uniform * (3 / width) ** 0.5
            setattr(self, name, bank.to(self.normalizers))

    def forward(
        self, student: Tensor, teacher: Tensor, contrast: Tensor, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the normalised scores (B, K + 1) of student and teacher, and update the banks' rows of the samples.

        Args:
            student: embeddings (B, D) of the student.
            teacher: embeddings (B, D') of the teacher.
            contrast: indices (B, K + 1) of each sample and of its K negatives.
            gather: concatenates the rows of all devices, so that their banks stay equal.
        """
        student_embedding = F.normalize(self.embed_student(student))
        teacher_embedding = F.normalize(self.embed_teacher(teacher))
        # copies: the backward pass reads them after the banks are updated
        memory_student = self.memory_student.clone()
        memory_teacher = self.memory_teacher.clone()
        student_scores = contrast_scores(student_embedding, memory_teacher, contrast, self.temperature)
        teacher_scores = contrast_scores(teacher_embedding, memory_student, contrast, self.temperature)
        local_means = torch.stack([student_scores.detach().mean(), teacher_scores.detach().mean()])
        means = gather(local_means[None]).mean(0)
        normalizers = torch.where(self.normalizers > 0, self.normalizers, len(self.memory_student) * means)
        self.normalizers.copy_(normalizers)
        indices = gather(contrast[:, 0])
        self._update(self.memory_student, indices, gather(student_embedding.detach()))
        self._update(self.memory_teacher, indices, gather(teacher_embedding.detach()))
        return student_scores / normalizers[0], teacher_scores / normalizers[1]

    def _update(self, memory: Tensor, indices: Tensor, embedding: Tensor) -> None:
        """Move rows of a bank towards new embeddings."""
        moved = self.momentum * memory[indices] + (1 - self.momentum) * embedding.to(memory.dtype)
        memory[indices] = F.normalize(moved)


@dataclass(eq=False)
class Negatives:
    """Draw samples of other classes for each sample of a batch, distinct if there are enough.

    The draw depends only on (seed, epoch, step) and the type of device.

    Args:
        labels: classes (samples,) of the training split.
        count: number of negatives per sample.
        seed: seed of the data module.
        rank: number of this device.
        world_size: number of devices, which share one draw.
    """

    labels: Tensor
    count: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.largest_class = int(self.labels.bincount().max())

    @classmethod
    def in_training(cls, trainer: pl.Trainer, count: int) -> "Negatives":
        """Return the negatives of a trainer's data; raise UsageError unless that is an :class:`ImageDataModule`."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UsageError(
                "CRDModule draws negatives by index and label: call fit(datamodule=...) with an ImageDataModule"
            )
        return cls(
            labels=data.splits["train"].targets,
            count=count,
            seed=data.seed or 0,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    def draw(self, indices: Tensor, epoch: int, step: int) -> Tensor:
        """Return indices (B, 1 + count): the samples of this device, and the negatives of each.

        A sample's negatives follow each other in one random order of all samples, from a random position on.

        Args:
            indices: indices (B,) of this device's samples.
            epoch: current epoch.
            step: number of the batch in the epoch.
        """
        device = indices.device
        self.labels = self.labels.to(device)  # once
        samples = len(self.labels)
        generator = torch.Generator(device).manual_seed(derive_seed(self.seed, CONTRAST, epoch, step))
        order = torch.randperm(samples, generator=generator, device=device)
        starts = torch.randint(samples, (len(indices) * self.world_size, 1), generator=generator, device=device)
        # long enough for `count` negatives wherever the sample's class is in the order, which wraps around
        other_classes = max(samples - self.largest_class, 1)
        length = ceil((self.count + self.largest_class) * samples / other_classes)
        positions = starts[self.rank :: self.world_size] + torch.arange(length, device=device)
        candidates = order[positions % samples]
        same_class = self.labels[candidates] == self.labels[indices, None]
        others_first = same_class.to(torch.uint8).argsort(dim=1, stable=True)
        negatives = candidates.gather(1, others_first[:, : self.count])
        return torch.cat([indices[:, None], negatives], 1)


class CRDModule(DistilledModule):
    """Minimise CE + ``crd_weight`` * :func:`contrast_loss` of both networks' embeddings.

    Training batches are (images, labels, indices). The banks are saved in checkpoints and equal on all devices without
    broadcasts; they take 51 MB for CIFAR-100 and 1.3 GB for ImageNet.

    Source: Tian et al., ICLR 2020.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        samples: number of training images; taken from the data in ``fit`` and from the checkpoint elsewhere by default.
        negatives: number of negatives per image.
        width: width of the linear embeddings.
        contrast_temperature: temperature of the cosines.
        bank_momentum: part of a bank's row that an update keeps.
        crd_weight: weight of the loss; 0.8 in the paper.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: for less than one negative, and in ``fit`` for data that are not an
            :class:`hsakd_pl.ImageDataModule`.

    Examples:
        >>> module = CRDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10, samples=16)
        >>> batch = (torch.rand(2, 3, 32, 32), torch.arange(2), torch.tensor([[0, 9, 5], [1, 4, 7]]))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_crd']
    """

    uses_unlabelled = False
    batch_terms = ("loss_crd",)
    gathers_batch = True
    needs_indices = True
    drawn: Negatives | None = None

    def __init__(
        self,
        network: Net,
        teacher: Net,
        samples: int | None = None,
        negatives: int = 16384,
        width: int = 128,
        contrast_temperature: float = 0.07,
        bank_momentum: float = 0.5,
        crd_weight: float = 0.8,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        self.set_loss_weights(loss_crd=crd_weight)
        require(negatives >= 1, "negatives", negatives, "at least 1")
        student_shapes, teacher_shapes = self.shapes("embedding")
        widths = (student_shapes.width, teacher_shapes.width)
        self.contrast = ContrastMemory(widths, samples or 0, width, contrast_temperature, bank_momentum)
        self.samples = samples
        self.negatives = negatives

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.drawn = Negatives.in_training(self.trainer, self.negatives)
            self._resize(len(self.drawn.labels), "the training split's images")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        bank = checkpoint["state_dict"].get("contrast.memory_student", self.contrast.memory_student)
        self._resize(bank.shape[:1].numel(), "the checkpoint's")
        super().on_load_checkpoint(checkpoint)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        memory = {f"contrast.{name}": getattr(self.contrast, name) for name in MEMORY}
        checkpoint["state_dict"] |= memory  # in place of those in an averaged copy of the module
        super().on_save_checkpoint(checkpoint)

    def _resize(self, samples: int, origin: str) -> None:
        require(self.samples in (None, samples), "samples", self.samples, f"{samples}, {origin}")
        self.contrast.resize(samples)
        self.samples = samples or None
        self.hparams["samples"] = self.samples

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if len(batch) != 3 or self.drawn is None:
            raise UsageError(
                "CRDModule trains on batches of (images, labels, indices): fit it with a data module of this package"
            )
        images, labels, indices = batch
        contrast = self.drawn.draw(indices, self.current_epoch, batch_idx)
        return super().training_step((images, labels, contrast), batch_idx)  # type: ignore[arg-type]

    def losses(self, batch: Any) -> dict[str, Tensor]:
        images, labels, contrast = batch
        teacher = self.teacher(images)  # first, as in StudentModule
        student = outputs_of(self.network, images)
        all_scores = self.contrast(student.embedding, teacher.embedding, contrast, self._gathered)
        samples = len(self.contrast.memory_student)
        loss = total(contrast_loss(scores, samples) for scores in all_scores)
        return self.terms(student, teacher, labels) | {"loss_crd": loss}

    def _gathered(self, rows: Tensor) -> Tensor:
        if self._trainer is None or self.trainer.world_size == 1:
            return rows
        return cast(Tensor, self.all_gather(rows)).flatten(0, 1)
