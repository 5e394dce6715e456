"""Build the public module that reproduces a recorded run."""

from typing import Any

import pytest
import torch.nn as nn

import hsakd_pl


def recipe_of(name: str) -> str:
    """Return ``teacher``, ``teacher_frozen``, ``student``, ``mutual`` or ``linear`` for a record's name."""
    if "teacher" in name:
        return "teacher_frozen" if "frozen" in name else "teacher"
    for word, recipe in (("online", "mutual"), ("student", "student"), ("linear", "linear")):
        if word in name:
            return recipe
    raise ValueError(f"a recorded run of an unknown kind: {name}")


def network_count(recipe: str) -> int:
    """Return the number of networks of a recipe: [trained], [trained, teacher] or two peers."""
    return 2 if recipe in ("student", "mutual") else 1


def build_module(recipe: str, networks: list[nn.Module], **options: Any) -> Any:
    """Return the public LightningModule of a recipe."""
    if recipe == "mutual":
        return hsakd_pl.MutualModule(networks=[*networks], **options)
    if recipe == "student":
        return hsakd_pl.StudentModule(network=networks[0], teacher=networks[1], **options)
    if recipe == "linear":
        if not hasattr(hsakd_pl, "LinearProbeModule"):
            pytest.skip("hsakd_pl.LinearProbeModule is missing")
        return hsakd_pl.LinearProbeModule(network=networks[0], **options)
    return hsakd_pl.TeacherModule(network=networks[0], freeze_backbone=recipe == "teacher_frozen", **options)


def is_distillation(term: str) -> bool:
    """Return whether the recordings count a loss term as ``div`` instead of ``cls``."""
    return "kd" in term
