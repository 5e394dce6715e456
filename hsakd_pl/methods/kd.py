"""Knowledge distillation (KD; Hinton et al. 2015)."""

from typing import Any

from hsakd_pl.methods.distilled import DistilledModule, Net


class KDModule(DistilledModule):
    """Minimises 0.1 CE + 0.9 KD at T = 4, the weights of the field's tables."""

    def __init__(self, network: Net, teacher: Net, ce_weight: float = 0.1, kd_weight: float = 0.9, **rest: Any) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, kd_weight=kd_weight, **rest)
