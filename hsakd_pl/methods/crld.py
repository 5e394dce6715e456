"""Cross-view consistency of logits (CRLD; Zhang et al., ACM MM 2024): compare views within and across, if confident."""

import torch
from torch import Tensor

from hsakd_pl.errors import require
from hsakd_pl.methods.divergence import row_divergence
from hsakd_pl.methods.options import PairOptions
from hsakd_pl.methods.views import Net, TwoViewModule, two_views
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import cross_entropy, full_precision, total
from hsakd_pl.signatures import Unpack


@full_precision
def crld_terms(
    student_weak: Tensor,
    teacher_weak: Tensor,
    student_strong: Tensor,
    teacher_strong: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    weak_threshold: float = 0.9,
    strong_threshold: float = 0.2,
) -> dict[str, Tensor]:
    """Return the three unweighted losses of :func:`crld_loss`, scalars: ``loss_ce``, ``loss_kd``, ``loss_cross``.

    ``loss_kd`` is the loss within views. Arguments: :func:`crld_loss`.
    """
    sure_weak = teacher_weak.softmax(1).amax(1) >= weak_threshold
    sure_strong = teacher_strong.softmax(1).amax(1) >= strong_threshold
    students = student_weak / temperature, student_strong / temperature
    teachers = teacher_weak / temperature, teacher_strong / temperature
    within = row_divergence(students[0], teachers[0]) + row_divergence(students[1], teachers[1])
    cross = row_divergence(students[1], teachers[0]) + row_divergence(students[0], teachers[1])
    return {
        "loss_ce": total(cross_entropy(view[: len(labels)], labels) for view in (student_weak, student_strong)),
        "loss_kd": temperature**2 * torch.where(sure_weak, within, 0.0).mean(),
        "loss_cross": temperature**2 * torch.where(sure_strong, cross, 0.0).mean(),
    }


def crld_loss(
    student_weak: Tensor,
    teacher_weak: Tensor,
    student_strong: Tensor,
    teacher_strong: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    ce_weight: float = 1.0,
    within_weight: float = 2.0,
    cross_weight: float = 0.5,
    weak_threshold: float = 0.9,
    strong_threshold: float = 0.2,
) -> Tensor:
    r"""Return the weighted sum of CE of both views and of KD within and across views, a scalar.

    With :math:`\text{KD}(a, b) = T^2 \text{KL}(\text{softmax}(t_b / T) \parallel \text{softmax}(s_a / T))` of the
    student's view a and the teacher's view b, and masks M of the images of which the teacher is sure:

    .. math:: w_\text{ce} (\text{CE}_w + \text{CE}_s)
        + w_\text{within} \overline{M_w (\text{KD}(w, w) + \text{KD}(s, s))}
        + w_\text{cross} \overline{M_s (\text{KD}(s, w) + \text{KD}(w, s))}

    The means are over all B images: masked ones count as 0. The code is a copy of the authors' repository, which is no
    longer available.

    Source: Zhang et al., ACM MM 2024; scx-822/CRLD-main @ c9d6657.

    Args:
        student_weak: class logits (B, N) of the student for the weak view.
        teacher_weak: class logits (B, N) of the teacher for the weak view.
        student_strong: class logits (B, N) of the student for the strong view.
        teacher_strong: class logits (B, N) of the teacher for the strong view.
        labels: classes (B,).
        temperature: temperature T.
        ce_weight: weight of the cross-entropies.
        within_weight: weight of KD within views.
        cross_weight: weight of KD across views.
        weak_threshold: least probability of the teacher's class, in the weak view, of an image compared within views.
        strong_threshold: least probability, in the strong view, of an image compared across views.

    Returns:
        Loss, a scalar.

    Examples:
        >>> weak, strong = torch.zeros(2, 4, 10)
        >>> crld_loss(weak, weak, strong, strong, torch.arange(4))
        tensor(4.6052)
    """
    terms = crld_terms(
        student_weak,
        teacher_weak,
        student_strong,
        teacher_strong,
        labels,
        temperature,
        weak_threshold,
        strong_threshold,
    )
    return ce_weight * terms["loss_ce"] + within_weight * terms["loss_kd"] + cross_weight * terms["loss_cross"]


class CRLDModule(TwoViewModule):
    """Minimise :func:`crld_loss` of a weak and a strong view of each image; ``loss_kd`` is the loss within views.

    Source: Zhang et al., ACM MM 2024.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        ce_weight: weight of the cross-entropies.
        within_weight: weight of KD within views.
        cross_weight: weight of KD across views.
        weak_threshold: least probability of the teacher's class, in the weak view, of an image compared within views.
        strong_threshold: least probability, in the strong view, of an image compared across views.
        temperature: temperature T.

    Other arguments: :class:`DistilledModule`.

    Raises:
        UsageError: if a threshold is not from 0 to 1.

    Examples:
        >>> module = CRLDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(8, 3, 32, 32), torch.arange(4))  # a weak view of 4 images, then a strong one
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_cross']
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        ce_weight: float = 1.0,
        within_weight: float = 2.0,
        cross_weight: float = 0.5,
        weak_threshold: float = 0.9,
        strong_threshold: float = 0.2,
        temperature: float = 4.0,
        **options: Unpack[PairOptions],
    ) -> None:
        super().__init__(
            network, teacher, ce_weight=ce_weight, kd_weight=within_weight, temperature=temperature, **options
        )
        self.set_loss_weights(loss_cross=cross_weight)
        require(0 <= weak_threshold <= 1, "weak_threshold", weak_threshold, "from 0 to 1")
        require(0 <= strong_threshold <= 1, "strong_threshold", strong_threshold, "from 0 to 1")
        self.weak_threshold = weak_threshold
        self.strong_threshold = strong_threshold

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        views = two_views(student, teacher)
        return crld_terms(*views, labels, self.temperature, self.weak_threshold, self.strong_threshold)
