"""A teacher that learns the self-supervised augmented task (Sec. 3.3, "Training the teacher network")."""

import torch.nn as nn
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial, require_trained
from hsakd_pl.modules.evaluated import Batch
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.options import BranchOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.networks.network import outputs_of
from hsakd_pl.ops import Transforms, joint_cross_entropy
from hsakd_pl.signatures import Unpack


class TeacherModule(HSAKDModule):
    """Minimise CE(class logits of untransformed images, y) + sum over branches CE(joint logits, M * y + m), Eq. 3, 4.

    In joint training the gradients of the branches reach the backbone ("HSAKD*" in Table 1). With ``freeze_backbone``
    only the branches are trained: the backbone starts from ``weights`` and stays in eval mode ("HSAKD").

    Source: Yang et al., IJCAI 2021, Eq. 3 and 4.

    Args:
        network: name (see :func:`hsakd_pl.create_network`) or network with branches.
        freeze_backbone: train the branches alone.
        weights: weight file to start from, ``pretrained`` for the weights that timm publishes, or ``random``; required
            for a frozen backbone given by name.
        num_classes: number of classes of a network given by name.
        transforms: transformations of a network given by name: an object, ``rotations``, ``flips``, ``colours``, an
            import path, or a product of these.
        ce_weight: weight of the class head's cross-entropy.
        joint_ce_weight: weight of the branches' cross-entropy.
        new_head: keep the last layers of the class head and of the branches freshly initialised, for ``weights`` of
            other classes.
        channels: number of channels of the images that a network given by name takes.

    Other arguments: :class:`HSAKDModule`.

    Raises:
        UsageError: for a frozen backbone without ``weights``, and with it for ``backbone_lr`` or ``new_head``, which
            have no effect.

    Examples:
        >>> module = TeacherModule("resnet14", num_classes=10)
        >>> batch = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_joint_ce']
    """

    def __init__(
        self,
        network: str | nn.Module,
        freeze_backbone: bool = False,
        weights: str | None = None,
        num_classes: int = 100,
        transforms: str | Transforms | None = None,
        ce_weight: float = 1.0,
        joint_ce_weight: float = 1.0,
        new_head: bool = False,
        channels: int = 3,
        **options: Unpack[BranchOptions],
    ) -> None:
        if freeze_backbone:
            require_trained("weights", network, weights)
            if options.get("backbone_lr") is not None:
                raise UsageError("backbone_lr has no effect with freeze_backbone: leave one of the two out")
            if new_head:
                raise UsageError("new_head: with freeze_backbone a new class head would never learn, leave one out")
        teacher = build_network(network, num_classes, True, transforms, channels)
        weight_files = load_initial("weights", weights, teacher, new_head)
        super().__init__([teacher], **options)
        self.weight_files = weight_files
        self.set_loss_weights(loss_ce=ce_weight, loss_joint_ce=joint_ce_weight)
        self.views = self.network.transforms.count
        if freeze_backbone:
            self.frozen.append(Frozen(self.network.without_branches))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        images, labels = batch
        return self.terms(outputs_of(self.network, self.network.transforms(images)), None, labels)

    def terms(self, student: NetworkOutput, teacher: None, labels: Tensor) -> dict[str, Tensor]:
        joint_labels = self.network.transforms.joint_labels(labels)
        joint = {"loss_joint_ce": joint_cross_entropy(student.joint_logits, joint_labels)}
        return super().terms(student, teacher, labels) | joint
