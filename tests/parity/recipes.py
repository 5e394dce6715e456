"""From the name of a recorded run to the public module that reproduces it."""

from typing import Any

import pytest
import torch.nn as nn

import hsakd_pl


def recipe_of(name: str) -> str:
    """``teacher``, ``teacher_frozen``, ``student``, ``mutual`` or ``linear``, from a record's name."""
    if "teacher" in name:
        return "teacher_frozen" if "frozen" in name else "teacher"
    for word, recipe in (("online", "mutual"), ("student", "student"), ("linear", "linear")):
        if word in name:
            return recipe
    raise ValueError(f"a recorded run of an unknown kind: {name}")


def network_count(recipe: str) -> int:
    """How many networks a recipe takes: [trained], [trained, teacher] or two peers."""
    return 2 if recipe in ("student", "mutual") else 1


def build_module(recipe: str, networks: list[nn.Module], **options: Any) -> Any:
    """The public LightningModule of a recipe, around as many networks as it takes."""
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
    """Whether a named loss term counts as ``div`` in the recordings (otherwise it is a ``cls`` term)."""
    return "kd" in term
