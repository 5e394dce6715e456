"""Local dense relational logit distillation (LDRLD; Xu et al., ICCV 2025): pairs of the student's largest logits."""

import torch
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.distilled import DistilledModule, Net
from hsakd_pl.methods.divergence import row_divergence, row_divergence_among
from hsakd_pl.methods.options import DistilledOptions
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import full_precision
from hsakd_pl.signatures import Unpack


@full_precision
def ldrld_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    alpha: float = 10.5,
    beta: float = 7.0,
    temperature: float = 4.0,
    top_classes: int = 7,
) -> Tensor:
    r"""Return the weighted divergences of pairs of the student's largest logits and of the other classes, a scalar.

    .. math:: \alpha T^2 \, \overline{\frac{\sum_{i<j} w_{ij} K_{ij} + K_A}{d (d - 1) / 2 + 1}}
        + \beta T^2 \, \overline{K_\mathrm{rest}}, \quad w_{ij} = \frac{2 e^{-0.05 (i + j)}}{1.5 + j - i}

    A are the d classes of the student's, not the teacher's, largest logits, ranked from 1. K_ij is the KL between the
    two-class softmaxes of ranks i and j, K_A that among A, K_rest that among the other classes, 0 if there are none,
    all at T. The sum is divided by the number of its summands.

    Source: Xu et al., ICCV 2025; yema-web/LDRLD @ b4dcfc9.

    Args:
        student_logits: class logits (B, N) of the student.
        teacher_logits: class logits (B, N) of the teacher.
        alpha: weight of the largest logits.
        beta: weight of the other classes.
        temperature: temperature T of all softmaxes.
        top_classes: number d of the student's largest logits, from 2 to N.

    Returns:
        Loss, a scalar.

    Raises:
        UsageError: if ``top_classes`` is not from 2 to N.

    Examples:
        >>> logits = torch.randn(4, 10)
        >>> ldrld_loss(logits, logits).abs() < 1e-4
        tensor(True)
    """
    num_classes = student_logits.shape[1]
    require(2 <= top_classes <= num_classes, "top_classes", top_classes, f"from 2 to the {num_classes} classes")
    student_soft = student_logits / temperature
    teacher_soft = teacher_logits.detach() / temperature
    chosen = student_logits.detach().topk(top_classes).indices
    student_top = student_soft.gather(1, chosen)
    teacher_top = teacher_soft.gather(1, chosen)
    pairs = torch.triu_indices(top_classes, top_classes, 1, device=chosen.device)
    relations = row_divergence(student_top[:, pairs.T], teacher_top[:, pairs.T]) @ _pair_weights(pairs, student_top)
    within = row_divergence(student_top, teacher_top)
    local = (relations + within) / (pairs.shape[1] + 1)
    others = torch.ones_like(student_logits, dtype=torch.bool).scatter(1, chosen, False)
    rest = row_divergence_among(student_soft, teacher_soft, others)
    return temperature**2 * (alpha * local.mean() + beta * rest.mean())


def _pair_weights(pairs: Tensor, like: Tensor) -> Tensor:
    """Return the weights of pairs (2, P) of ranks from 0: close ranks, and large logits, weigh more."""
    smaller, larger = (pairs + 1).to(like.dtype)
    return 2 / (1.5 + larger - smaller) * torch.exp(-0.05 * (smaller + larger))


class LDRLDModule(DistilledModule):
    """Minimise CE + ``ldrld_weight`` * :func:`ldrld_loss`.

    Published for resnet32x4-resnet8x4: 10.5, 7, T = 4, d = 7. The learning rate of the published runs is 0.95 of the
    classic one from epoch 20 to 150, because their warm-up never ends; that is not repeated here.

    Source: Xu et al., ICCV 2025.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        alpha: weight of the largest logits.
        beta: weight of the other classes.
        top_classes: number of the student's largest logits.
        ldrld_weight: weight of the loss.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: if ``top_classes`` is not from 2 to the number of classes.

    Examples:
        >>> module = LDRLDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_ldrld']
    """

    needs_only_logits = True

    def __init__(
        self,
        network: Net,
        teacher: Net,
        alpha: float = 10.5,
        beta: float = 7.0,
        top_classes: int = 7,
        ldrld_weight: float = 1.0,
        **options: Unpack[DistilledOptions],
    ) -> None:
        super().__init__(network, teacher, **options)
        classes = self.num_classes
        require(2 <= top_classes <= classes, "top_classes", top_classes, f"from 2 to the {classes} classes")
        self.set_loss_weights(loss_ldrld=ldrld_weight)
        self.alpha = alpha
        self.beta = beta
        self.top_classes = top_classes

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = ldrld_loss(student.logits, teacher.logits, self.alpha, self.beta, self.temperature, self.top_classes)
        return super().terms(student, teacher, labels) | {"loss_ldrld": loss}
