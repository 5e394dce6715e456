"""Students that stand alone: exported into a folder, and loaded from it."""

from hsakd_pl.export.checkpoint import student_from_checkpoint
from hsakd_pl.export.export import export_student
from hsakd_pl.export.student import Student, load_student

__all__ = ["Student", "export_student", "load_student", "student_from_checkpoint"]
