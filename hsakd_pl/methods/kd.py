"""Knowledge distillation (KD; Hinton et al. 2015)."""

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.modules.options import Unpack


class KDModule(DistilledModule):
    """Minimises 0.1 CE + 0.9 KD at T = 4, the weights of the field's tables."""

    def __init__(
        self,
        network: Net,
        teacher: Net,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        temperature: float = 4.0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(network, teacher, ce_weight=ce_weight, kd_weight=kd_weight, temperature=temperature, **options)
