"""Deep mutual learning (DML; Zhang et al., CVPR 2018): peers without branches learn from each other."""

from collections.abc import Sequence

from hsakd_pl.methods.options import DMLOptions
from hsakd_pl.modules import MutualModule
from hsakd_pl.modules.build import Net
from hsakd_pl.signatures import Unpack


class DMLModule(MutualModule):
    """Minimise the sum over the peers of CE + KD towards the other peers; ``val/acc`` is the mean over the peers.

    Args:
        networks: two or more registry names or networks.
        temperature: temperature of the KD terms; 1 in the paper.

    Other arguments: :class:`hsakd_pl.MutualModule`.
    """

    def __init__(self, networks: Sequence[Net], temperature: float = 1.0, **options: Unpack[DMLOptions]) -> None:
        super().__init__(
            networks,
            temperature=temperature,
            joint_ce_weight=0.0,
            joint_kd_weight=0.0,
            **options,
        )
