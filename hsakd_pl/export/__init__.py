"""Export students into folders that need neither the checkpoint nor the data, and load them."""

from hsakd_pl.export.aware import QuantizationAware
from hsakd_pl.export.checkpoint import student_from_checkpoint
from hsakd_pl.export.export import export_student
from hsakd_pl.export.student import Student, load_student

__all__ = ["QuantizationAware", "Student", "export_student", "load_student", "student_from_checkpoint"]
