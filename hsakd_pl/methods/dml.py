"""Deep mutual learning (DML; Zhang et al., CVPR 2018): peers without branches learn from each other."""

from collections.abc import Sequence

from hsakd_pl.methods.options import DMLOptions
from hsakd_pl.modules import MutualModule
from hsakd_pl.modules.build import Net
from hsakd_pl.signatures import Unpack


class DMLModule(MutualModule):
    """Minimise the sum over the peers of CE + KD towards the other peers; ``val/acc`` is the mean over the peers.

    Source: Zhang et al., CVPR 2018.

    Args:
        networks: two or more registry names or networks.
        temperature: temperature of the KD terms; 1 in the paper.

    Other arguments: :class:`hsakd_pl.MutualModule`.

    Examples:
        >>> module = DMLModule(["resnet8", "resnet14"], num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd']
    """

    def __init__(self, networks: Sequence[Net], temperature: float = 1.0, **options: Unpack[DMLOptions]) -> None:
        super().__init__(
            networks,
            temperature=temperature,
            joint_ce_weight=0.0,
            joint_kd_weight=0.0,
            **options,
        )
