"""Multi-level logit distillation (MLKD; Jin et al., CVPR 2023): match images, batch and classes in two views."""

from torch import Tensor

from hsakd_pl.methods.options import PairOptions
from hsakd_pl.methods.views import Net, TwoViewModule, two_views
from hsakd_pl.networks import NetworkOutput
from hsakd_pl.ops import cross_entropy, full_precision, kd_loss, total
from hsakd_pl.signatures import Unpack

# Temperatures next to T, as in the published code
STRONG_TEMPERATURES = (3.0, 5.0)  # at which both views are compared
WEAK_TEMPERATURES = (2.0, 6.0)  # at which the published code compares the weak view twice, and the strong one never


@full_precision
def mlkd_terms(
    student_weak: Tensor,
    teacher_weak: Tensor,
    student_strong: Tensor,
    teacher_strong: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
) -> dict[str, Tensor]:
    r"""Return four unweighted losses, scalars: CE, and the KD of images, of classes and of the batch.

    With P = softmax at a temperature, m and c the :func:`share_up_to_median` of images and of classes, and sums over
    the temperatures T, 3, 5, 2 and 6:

    - ``loss_ce``: CE of both views.
    - ``loss_kd``: m times the sum of KD of the weak view, KD of the strong view at T, 3 and 5, and once more KD of the
      weak view at 2 and 6.
    - ``loss_cc``: c times the sum of :math:`\Vert P_t^\top P_t - P_s^\top P_s \Vert^2 / N` of the weak view.
    - ``loss_bc``: m times the sum of :math:`\Vert P_t P_t^\top - P_s P_s^\top \Vert^2 / B` of the weak view.

    These are the losses of the published code, whose masks of confident images and classes select nothing: they only
    scale the losses.

    Source: Jin et al., CVPR 2023; Jin-Ying/Multi-Level-Logit-Distillation @ 5ee473f.

    Args:
        student_weak: class logits (B, N) of the student for the weak view.
        teacher_weak: class logits (B, N) of the teacher for the weak view.
        student_strong: class logits (B, N) of the student for the strong view.
        teacher_strong: class logits (B, N) of the teacher for the strong view.
        labels: classes (B,).
        temperature: temperature T.

    Returns:
        Scalars by name: ``loss_ce``, ``loss_kd``, ``loss_cc`` and ``loss_bc``.

    Examples:
        >>> weak, strong = torch.randn(2, 4, 10)
        >>> terms = mlkd_terms(weak, weak, strong, strong, torch.arange(4))
        >>> list(terms), bool(terms["loss_bc"] < 1e-6)
        (['loss_ce', 'loss_kd', 'loss_cc', 'loss_bc'], True)
    """
    teacher_probabilities = teacher_weak.detach().softmax(1)
    image_share = share_up_to_median(teacher_probabilities.amax(1))
    class_share = share_up_to_median(teacher_probabilities.sum(0))
    temperatures = (temperature, *STRONG_TEMPERATURES, *WEAK_TEMPERATURES)
    weak = total(kd_loss(student_weak, teacher_weak, t) for t in temperatures)
    weak_again = total(kd_loss(student_weak, teacher_weak, t) for t in WEAK_TEMPERATURES)
    strong = total(kd_loss(student_strong, teacher_strong, t) for t in (temperature, *STRONG_TEMPERATURES))
    pairs = [((student_weak / t).softmax(1), (teacher_weak.detach() / t).softmax(1)) for t in temperatures]
    return {
        "loss_ce": total(cross_entropy(view[: len(labels)], labels) for view in (student_weak, student_strong)),
        "loss_kd": image_share * weak + strong + weak_again,
        "loss_cc": class_share * total(_gram_loss(student.T, teacher.T) for student, teacher in pairs),
        "loss_bc": image_share * total(_gram_loss(student, teacher) for student, teacher in pairs),
    }


def share_up_to_median(values: Tensor) -> Tensor:
    """Return the share of values (n,) that are at most their median, the mean of the middle two for even n: a scalar.

    Without ties it is 1/2 for even n and (n + 1) / 2n for odd n.
    """
    ordered = values.sort().values
    median = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    return (values <= median).to(values.dtype).mean()


def _gram_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference of the Gram matrices (n, n) of two sets of n rows, divided by n."""
    return (teacher @ teacher.T - student @ student.T).square().sum() / len(student)


def mlkd_loss(
    student_weak: Tensor,
    teacher_weak: Tensor,
    student_strong: Tensor,
    teacher_strong: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    ce_weight: float = 0.1,
    kd_weight: float = 0.9,
) -> Tensor:
    """Return ``ce_weight`` * CE + ``kd_weight`` * (KD + CC + BC) of :func:`mlkd_terms`, a scalar.

    Source: Jin et al., CVPR 2023.

    Args:
        student_weak: class logits (B, N) of the student for the weak view.
        teacher_weak: class logits (B, N) of the teacher for the weak view.
        student_strong: class logits (B, N) of the student for the strong view.
        teacher_strong: class logits (B, N) of the teacher for the strong view.
        labels: classes (B,).
        temperature: temperature T.
        ce_weight: weight of the cross-entropies.
        kd_weight: weight of the three losses that compare with the teacher.

    Returns:
        Loss, a scalar.

    Examples:
        >>> weak, strong = torch.zeros(2, 4, 10)
        >>> mlkd_loss(weak, weak, strong, strong, torch.arange(4))
        tensor(0.4605)
    """
    terms = mlkd_terms(student_weak, teacher_weak, student_strong, teacher_strong, labels, temperature)
    return ce_weight * terms["loss_ce"] + kd_weight * (terms["loss_kd"] + terms["loss_cc"] + terms["loss_bc"])


class MLKDModule(TwoViewModule):
    """Minimise :func:`mlkd_loss` of a weak and a strong view of each image.

    Each device compares its own images, and the loss depends on how many they are: several devices, as well as
    ``accumulate_grad_batches``, change it. Published results take half of the usual learning rate, and 240 to 960
    epochs.

    Source: Jin et al., CVPR 2023.

    Args:
        network: registry name of the student, or a network.
        teacher: registry name of the teacher, or a network.
        ce_weight: weight of the cross-entropies.
        kd_weight: weight of the three losses that compare with the teacher.
        temperature: temperature T.

    Other arguments: :class:`DistilledModule`.

    Examples:
        >>> module = MLKDModule("resnet8", "resnet14", teacher_weights="random", num_classes=10)
        >>> batch = (torch.rand(8, 3, 32, 32), torch.arange(4))  # a weak view of 4 images, then a strong one
        >>> list(module.losses(batch))
        ['loss_ce', 'loss_kd', 'loss_cc', 'loss_bc']
    """

    batch_terms = ("loss_kd", "loss_cc", "loss_bc")

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
        self.set_loss_weights(loss_cc=kd_weight, loss_bc=kd_weight)

    def terms(self, student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        return mlkd_terms(*two_views(student, teacher), labels, self.temperature)
