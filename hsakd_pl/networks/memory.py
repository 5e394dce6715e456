"""Banks of both networks' embeddings of all samples, for contrastive representation distillation."""

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from hsakd_pl.ops import full_precision


@full_precision
def contrast_scores(embedding: Tensor, memory: Tensor, contrast: Tensor, temperature: float) -> Tensor:
    """Give exponentials of cosines over a temperature, of (B, D) with rows of a bank (samples, D): (B, K + 1) of them.

    ``contrast`` (B, K + 1) are the indices of the rows.
    """
    return ((embedding @ memory.T).gather(1, contrast) / temperature).exp()


class ContrastMemory(nn.Module):
    """Linear embeddings of student and teacher, both trained, and a bank (samples, width) of each one's embeddings.

    After Tian et al., ICLR 2020. A bank scores the other network's embeddings; the first call fixes the ``normalizers``
    (2,) of the student's and the teacher's scores.
    """

    memory_student: Tensor
    memory_teacher: Tensor
    normalizers: Tensor

    def __init__(self, widths: tuple[int, int], samples: int, width: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.embed_student, self.embed_teacher = (nn.Linear(each, width) for each in widths)
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("memory_student", torch.empty(0, width))
        self.register_buffer("memory_teacher", torch.empty(0, width))
        self.register_buffer("normalizers", torch.zeros(2))
        self.resize(samples)

    def resize(self, samples: int) -> None:
        """Draw both banks anew for so many samples, unless they are for as many."""
        if samples == len(self.memory_student):
            return
        width, generator = self.embed_student.out_features, torch.Generator().manual_seed(0)  # equal on all devices
        for name in ("memory_student", "memory_teacher"):  # uniform, of length 1 on average, as published
            drawn = (2 * torch.rand(samples, width, generator=generator, device="cpu") - 1) * (3 / width) ** 0.5
            self.register_buffer(name, drawn.to(self.normalizers))

    def forward(
        self, student: Tensor, teacher: Tensor, contrast: Tensor, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Give normalised scores (B, K + 1) of embeddings (B, D) and (B, D'), then move the banks' rows of the samples.

        ``contrast`` (B, K + 1) are indices of the samples and of K negatives for each; ``gather`` joins the rows of all
        devices, whose banks stay equal.
        """
        ours, theirs = F.normalize(self.embed_student(student)), F.normalize(self.embed_teacher(teacher))
        # of copies, which the backward pass reads when the banks have moved
        scores = contrast_scores(ours, self.memory_teacher.clone(), contrast, self.temperature)
        teacher_scores = contrast_scores(theirs, self.memory_student.clone(), contrast, self.temperature)
        means = gather(torch.stack([scores.detach().mean(), teacher_scores.detach().mean()])[None]).mean(0)
        fixed = torch.where(self.normalizers > 0, self.normalizers, len(self.memory_student) * means)
        self.normalizers.copy_(fixed)
        for memory, embedding in ((self.memory_student, ours), (self.memory_teacher, theirs)):
            indices, rows = gather(contrast[:, 0]), gather(embedding.detach()).to(memory.dtype)
            memory[indices] = F.normalize(self.momentum * memory[indices] + (1 - self.momentum) * rows)
        return scores / fixed[0], teacher_scores / fixed[1]
