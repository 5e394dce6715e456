"""Contrastive representation distillation (CRD; Tian et al., ICLR 2020)."""

from typing import Any, cast

from torch import Tensor

from hsakd_pl.errors import UsageError, require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.negatives import Negatives
from hsakd_pl.networks.memory import ContrastMemory
from hsakd_pl.ops import full_precision, total


@full_precision
def contrast_loss(scores: Tensor, samples: int) -> Tensor:
    """Average over the images how badly a pair is told from K negatives out of ``samples``: (B, K + 1) -> a scalar.

    Normalised scores, the pair's in the first column (Eq. 9 to 11 of the paper).
    """
    noise = (scores.shape[1] - 1) / samples
    pair, negatives, added = scores[:, 0], scores[:, 1:], noise + 1e-7  # as published
    return -((pair / (pair + added)).log().sum() + (noise / (negatives + added)).log().sum()) / len(scores)


class CRDModule(DistilledModule):
    """Minimises CE + ``crd_weight`` times how badly an image's embeddings are told from those of other classes.

    Training batches end in the samples' indices, and negatives come from (seed, epoch, step). The banks, equal on all
    devices (DDP sends none around) and saved with the student, take 51 MB on CIFAR-100 and 1.3 GB on ImageNet.

    Args:
        samples: images of the training split, which ``fit`` finds in its data, and anything else in the checkpoint.
        negatives: images of other classes for each image of a batch.
        width: of the linear embeddings.
        contrast_temperature: of the cosines.
        bank_momentum: what a bank keeps of an image's embedding when it is seen again.
    """

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
        **rest: Any,
    ) -> None:
        super().__init__(network, teacher, {"loss_crd": crd_weight}, **rest)
        require(negatives >= 1, "negatives", negatives, "at least 1")
        ours, theirs = (each.width for each in self.shapes("embedding"))
        self.contrast = ContrastMemory((ours, theirs), samples or 0, width, contrast_temperature, bank_momentum)
        self.samples, self.negatives = samples, negatives
        self._ddp_params_and_buffers_to_ignore = [f"contrast.{name}" for name, _ in self.contrast.named_buffers()]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.drawn = Negatives.in_training(self.trainer, self.negatives)
            self._take(len(self.drawn.labels), "the training split's images")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        bank = checkpoint["state_dict"].get("contrast.memory_student", self.contrast.memory_student)
        self._take(bank.shape[:1].numel(), "the checkpoint's")
        super().on_load_checkpoint(checkpoint)

    def _take(self, samples: int, whose: str) -> None:
        require(self.samples in (None, samples), "samples", self.samples, f"{samples}, {whose}")
        self.contrast.resize(samples)
        self.samples = self.hparams["samples"] = samples or None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if len(batch) != 3 or self.drawn is None:
            raise UsageError("CRDModule trains on (images, labels, indices): fit it on a data module of the package")
        images, labels, indices = batch
        contrast = self.drawn.draw(indices, self.current_epoch, batch_idx)
        return super().training_step((images, labels, contrast), batch_idx)  # type: ignore[arg-type]

    def losses(self, batch: Any) -> dict[str, Tensor]:
        images, labels, contrast = batch
        student, teacher = self.network.outputs(images), self.teacher(images)
        both = self.contrast(student.embedding, teacher.embedding, contrast, self._gathered)
        loss = total(contrast_loss(scores, len(self.contrast.memory_student)) for scores in both)
        return self.terms(student, teacher, labels) | {"loss_crd": loss}

    def _gathered(self, rows: Tensor) -> Tensor:
        alone = self._trainer is None or self.trainer.world_size == 1
        return rows if alone else cast(Tensor, self.all_gather(rows)).flatten(0, 1)
