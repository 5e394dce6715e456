"""Options that the methods pass on to their base, for type checkers and editors; the modules describe them."""

from hsakd_pl.modules.answers import AnswersType
from hsakd_pl.modules.options import BranchOptions
from hsakd_pl.ops import Transforms


class StudentOptions(BranchOptions, total=False):
    """Options of :class:`hsakd_pl.StudentModule` that no method replaces."""

    weights: str | None
    teacher_weights: str | None
    teacher_sha256: str | None
    num_classes: int
    transforms: str | Transforms | None
    new_head: bool
    teacher_answers: str | None
    teacher_answers_dtype: AnswersType
    teacher_answers_gb: float
    teacher_answers_top: int | None
    channels: int


class PairOptions(StudentOptions, total=False):
    """Options of every method."""

    image_size: int


class KDOptions(PairOptions, total=False):
    """Options of the methods that leave CE and KD at the defaults of :class:`DistilledModule`."""

    temperature: float
    ce_weight: float
    kd_weight: float


class DistilledOptions(KDOptions, total=False):
    """Options of the methods that also leave the warm-up of weights at its default."""

    weight_warmup_epochs: int


class DMLOptions(BranchOptions, total=False):
    """Options of :class:`hsakd_pl.MutualModule` without branches."""

    weights: str | None
    num_classes: int
    transforms: str | Transforms | None
    ce_weight: float
    kd_weight: float
    new_head: bool
    target: str
    channels: int
