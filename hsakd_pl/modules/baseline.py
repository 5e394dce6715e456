"""A network trained alone."""

import torch.nn as nn

from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.build import build_network, load_initial
from hsakd_pl.modules.options import TrainingOptions
from hsakd_pl.signatures import Unpack


class BaselineModule(HSAKDModule):
    """Minimise the cross-entropy on untransformed images: the row "Student" of the paper's Table 1.

    Source: Yang et al., IJCAI 2021, Table 1.

    Args:
        network: name (see :func:`hsakd_pl.create_network`) or network; its branches, if any, are left out.
        weights: weight file to start from, or ``pretrained`` for the weights that timm publishes. Where a file holds
            several, such as averages, ``FILE#NAME`` takes those under a name.
        num_classes: number of classes of a network given by name, or of any other ``nn.Module``.
        channels: number of channels of the images that a network given by name, or any other ``nn.Module``, takes.
        new_head: keep the last layers of the class head and of the branches freshly initialised, for ``weights`` of
            other classes.

    Other arguments: :class:`HSAKDModule`.

    Raises:
        UsageError: for an unknown network, and for weights that do not fit it.

    Examples:
        >>> module = BaselineModule("resnet8", num_classes=10)
        >>> batch = torch.rand(4, 3, 32, 32), torch.arange(4)
        >>> list(module.losses(batch))
        ['loss_ce']
    """

    def __init__(
        self,
        network: str | nn.Module,
        weights: str | None = None,
        num_classes: int = 100,
        new_head: bool = False,
        channels: int = 3,
        **options: Unpack[TrainingOptions],
    ) -> None:
        student = build_network(network, num_classes, branches=False, channels=channels)
        weight_files = load_initial("weights", weights, student, new_head)
        super().__init__([student], ensemble=None, **options)
        self.weight_files = weight_files
