"""Stage one of SSKD (Xu et al., ECCV 2020): a projection head of the teacher's embeddings learns to contrast."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hsakd_pl.methods.sskd import contrast
from hsakd_pl.modules import Frozen, HSAKDModule
from hsakd_pl.modules.build import Net, build_network, load_initial, not_by_name, require_trained, show_options
from hsakd_pl.modules.evaluated import Batch
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.connectors import ProjectedTeacher
from hsakd_pl.ops import cross_entropy


class SSKDProjectionModule(HSAKDModule):
    """Minimises the cross-entropy of finding a transformed image's original by the cosines of their projections.

    The head alone learns, for 60 epochs as published; its checkpoint is stage two's ``projection_weights``. A device
    contrasts its own images. ``val/acc`` is the teacher's, which does not change.

    Args:
        network: the teacher, a registry name or a network.
        weights: file of the teacher; ``random`` for a fresh one.
        num_classes: of a teacher by name.
        image_size: pixels a side of the images, by which the width of the embedding is found.
    """

    def __init__(
        self,
        network: Net,
        weights: str | None = None,
        num_classes: int = 100,
        image_size: int = 32,
        lr: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        milestones: Sequence[int] = (30, 45),
        warmup_epochs: int = 0,
        **rest: Any,
    ) -> None:
        require_trained("weights", network, weights)
        teacher = build_network(network, num_classes, branches=False)
        weight_files = load_initial("weights", weights, teacher)
        projected = ProjectedTeacher(teacher, teacher.shapes(image_size, "embedding").width)
        super().__init__([projected], None, lr, momentum, nesterov, weight_decay, milestones, warmup_epochs, **rest)
        self.weight_files = weight_files
        self.save_hyperparameters(ignore=not_by_name(self, network=network))
        self.frozen.append(Frozen(teacher))
        self.views = self.network.transforms.count

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return self.terms(self.network.outputs(self.network.transforms(batch[0])), None, batch[1])

    def terms(self, student: NetworkOutput, teacher: None, labels: Tensor) -> dict[str, Tensor]:
        return {"loss_contrast": cross_entropy(*contrast(student.embedding, self.network.transforms))}


show_options(SSKDProjectionModule, "networks", "loss_weights")
