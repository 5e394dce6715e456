"""The base of the methods with a teacher: one pass through both networks, CE and KD, and what a method adds."""

from hsakd_pl.errors import require
from hsakd_pl.methods.options import StudentOptions
from hsakd_pl.modules import StudentModule
from hsakd_pl.modules.build import Net as Net
from hsakd_pl.modules.options import Unpack
from hsakd_pl.networks import NetworkOutput

KD_TERMS = ("loss_ce", "loss_kd")  # what every method has; the weights of its other terms may warm up


class DistilledModule(StudentModule):
    """Minimises CE + KD of class logits (Hinton) on images as they are, without branches, and a method's own terms.

    A method derives from it and extends :meth:`terms`. Whatever parts it registers train and resume with the student,
    and ``load_weights(network, checkpoint)`` leaves them out. It sets the weights of its terms by
    ``self.set_loss_weights(loss_mine=...)``. Raises UsageError as :class:`hsakd_pl.StudentModule` does.

    Args:
        network: a registry name, or a network; branches that it has are left out.
        teacher: a registry name, or a network, trained alone.
        weight_warmup_epochs: epochs over which the weights of all terms but CE and KD grow linearly.
        image_size: pixels a side of the images, by which the shapes of both networks' outputs are found.
        temperature: of the KD term; T = 4: the field's tables.
        ce_weight: factor of the cross-entropy.
        kd_weight: factor of the KD term.

    Other arguments: :class:`hsakd_pl.StudentModule`.
    """

    def __init__(
        self,
        network: Net,
        teacher: Net,
        weight_warmup_epochs: int = 0,
        image_size: int = 32,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        **options: Unpack[StudentOptions],
    ) -> None:
        super().__init__(
            network,
            teacher,
            temperature=temperature,
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            joint_kd_weight=0.0,
            transform_images=False,
            **options,
        )
        require(weight_warmup_epochs >= 0, "weight_warmup_epochs", weight_warmup_epochs, "at least 0")
        self.weight_warmup_epochs = weight_warmup_epochs
        self.image_size = image_size

    def loss_weight(self, name: str) -> float:
        weight = super().loss_weight(name)
        if name not in KD_TERMS and self.current_epoch < self.weight_warmup_epochs:
            weight *= (self.current_epoch + 1) / self.weight_warmup_epochs
        return weight

    def shapes(self, *parts: str) -> tuple[NetworkOutput, NetworkOutput]:
        """Give the shapes of what student and teacher make of an image; UsageError where one lacks one of ``parts``."""
        student = self.network.shapes(self.image_size, *parts)
        teacher = self.teacher.network.shapes(self.image_size, *parts)
        return student, teacher
