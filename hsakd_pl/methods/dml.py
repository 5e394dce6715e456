"""Deep mutual learning (DML; Zhang et al., CVPR 2018)."""

from collections.abc import Sequence

from hsakd_pl.methods.options import DMLOptions
from hsakd_pl.modules import MutualModule
from hsakd_pl.modules.build import Net
from hsakd_pl.modules.options import Unpack


class DMLModule(MutualModule):
    """Minimises for all peers together CE + KD towards the others at T = 1; the result is the mean over the peers.

    Args:
        temperature: of the KD terms.
    """

    def __init__(self, networks: Sequence[Net], temperature: float = 1.0, **options: Unpack[DMLOptions]) -> None:
        super().__init__(
            networks,
            temperature=temperature,
            transforms=None,
            joint_ce_weight=0.0,
            joint_kd_weight=0.0,
            **options,
        )
