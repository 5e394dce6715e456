"""Knowledge distillation (KD; Hinton et al. 2015); its loss is :func:`hsakd_pl.ops.kd_loss`."""

from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.signatures import Unpack


class KDModule(DistilledModule):
    """Minimise 0.1 CE + 0.9 KD at T = 4, as in the field's tables.

    Source: Hinton et al. 2015.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        ce_weight: weight of the cross-entropy.
        kd_weight: weight of the KD term.
        temperature: temperature of the KD term.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = KDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd']
    """

    needs_only_logits = True

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
