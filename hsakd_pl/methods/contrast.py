"""Contrastive representation distillation (CRD; Tian et al., ICLR 2020): pairs told from a bank's negatives."""

from collections.abc import Callable
from math import ceil

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.methods.precision import full_precision

EPSILON = 1e-7  # added to a score's denominator, as published


@full_precision
def contrast_scores(embedding: Tensor, memory: Tensor, contrast_index: Tensor, temperature: float) -> Tensor:
    """Give exponentials of cosines over a temperature, of embeddings (B, D) with rows of a bank (samples, D).

    ``contrast_index`` (B, K + 1) says with which -> (B, K + 1).
    """
    return ((embedding @ memory.T).gather(1, contrast_index) / temperature).exp()


@full_precision
def contrast_loss(scores: Tensor, samples: int) -> Tensor:
    """Average over the images how badly a pair is told from its K negatives: normalised scores (B, K + 1) -> a scalar.

    The first column holds the pair; negatives are drawn from ``samples`` (Eq. 9 to 11 of its paper).
    """
    noise = (scores.shape[1] - 1) / samples
    pair, negatives = scores[:, 0], scores[:, 1:]
    told = (pair / (pair + noise + EPSILON)).log().sum() + (noise / (negatives + noise + EPSILON)).log().sum()
    return -told / len(scores)


def draw_contrast(
    indices: Tensor, labels: Tensor, negatives: int, generator: torch.Generator, rank: int = 0, world_size: int = 1
) -> Tensor:
    """Draw for each of B samples so many of other classes, none twice while there are enough: (B, 1 + negatives).

    ``indices`` (B,) of this device's samples, which come first; ``labels`` (samples,) of all. Each row takes a part of
    one random order; a device draws what all would have drawn together.
    """
    samples, most = len(labels), int(labels.bincount().max())
    length = ceil((negatives + most) * samples / max(samples - most, 1))  # holds enough, however its class lies
    order = torch.randperm(samples, generator=generator, device=labels.device)
    starts = torch.randint(samples, (len(indices) * world_size, 1), generator=generator, device=labels.device)
    drawn = order[(starts[rank::world_size] + torch.arange(length, device=labels.device)) % samples]
    own = labels[drawn] == labels[indices, None]
    others = own.to(torch.uint8).argsort(dim=1, stable=True)[:, :negatives]
    return torch.cat([indices[:, None], drawn.gather(1, others)], 1)


class ContrastMemory(nn.Module):
    """Linear embeddings of both networks, both trained, and a bank of each network's embeddings of all samples.

    The banks (samples, width) are 51 MB of float32 together on CIFAR-100 and 1.3 GB on ImageNet, on each device.
    ``normalizers`` (2,), of the student's and the teacher's scores, are fixed by the first call.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    normalizers: Tensor

    def __init__(
        self, student_width: int, teacher_width: int, width: int = 128, temperature: float = 0.07, momentum: float = 0.5
    ) -> None:
        super().__init__()
        self.embed_student, self.embed_teacher = nn.Linear(student_width, width), nn.Linear(teacher_width, width)
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("normalizers", torch.zeros(2))
        self.allocate(0, torch.Generator())

    def allocate(self, samples: int, generator: torch.Generator) -> None:
        """Begin banks of so many samples with random rows, uniform and of length 1 on average, as published."""
        width = self.embed_student.out_features
        for name in ("memory_student", "memory_teacher"):
            rows = torch.rand(samples, width, generator=generator).sub(0.5).mul(2 * (3 / width) ** 0.5)
            self.register_buffer(name, rows.to(self.embed_student.weight))

    def forward(
        self, student: Tensor, teacher: Tensor, contrast_index: Tensor, gather: Callable[[Tensor], Tensor] = torch.clone
    ) -> Tensor:
        """Give the loss of embeddings (B, D) and (B, D'), then move the banks' rows of all devices' samples.

        ``gather`` brings the rows of all devices together. A bank scores the other network's embeddings.
        """
        ours, theirs = F.normalize(self.embed_student(student)), F.normalize(self.embed_teacher(teacher))
        samples = len(self.memory_student)
        banks = self.memory_teacher.clone(), self.memory_student.clone()  # which the backward pass reads after the move
        pairs = zip((ours, theirs), banks, strict=True)
        scores = [contrast_scores(each, bank, contrast_index, self.temperature) for each, bank in pairs]
        means = gather(torch.stack([each.detach().mean() for each in scores])[None]).mean(0)
        self.normalizers.copy_(torch.where(self.normalizers > 0, self.normalizers, samples * means))
        indices = gather(contrast_index[:, 0])
        for memory, embedding in ((self.memory_student, ours), (self.memory_teacher, theirs)):
            self._move(memory, indices, gather(embedding.detach()))
        constants = self.normalizers.clone()
        return contrast_loss(scores[0] / constants[0], samples) + contrast_loss(scores[1] / constants[1], samples)

    def _move(self, memory: Tensor, indices: Tensor, embedding: Tensor) -> None:
        rows = self.momentum * memory[indices] + (1 - self.momentum) * embedding.to(memory.dtype)
        memory.index_copy_(0, indices, F.normalize(rows))
