"""LightningModules of HSAKD: the baseline, the teacher, the student, mutual distillation and the linear probe."""

from hsakd_pl.modules.base import HSAKDModule
from hsakd_pl.modules.baseline import BaselineModule
from hsakd_pl.modules.ema import EMA
from hsakd_pl.modules.embedding import EmbeddingModule
from hsakd_pl.modules.frozen import Frozen
from hsakd_pl.modules.mutual import MutualModule
from hsakd_pl.modules.probe import LinearProbeModule
from hsakd_pl.modules.student import StudentModule
from hsakd_pl.modules.teacher import TeacherModule

__all__ = [
    "EMA",
    "BaselineModule",
    "EmbeddingModule",
    "Frozen",
    "HSAKDModule",
    "LinearProbeModule",
    "MutualModule",
    "StudentModule",
    "TeacherModule",
]
