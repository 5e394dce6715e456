"""Declare what each option of a run decides: if it belongs to the protocol, and if a resumed run may change it.

The table below is the only place that says so: the protocol, the check of resumed runs and the tables of results read
it. **An option that is not in it belongs to the protocol, and a change of it on resume is recorded.**
"""

import re
from enum import Enum
from typing import Literal, NamedTuple

from hsakd_pl.recipes.recipe import RATES

# Options of modules that name weight files or other numbers, and the fields of a protocol with their hashes
WEIGHT_OPTIONS = {
    "weights": "weights_sha256",
    "teacher_weights": "teacher_sha256",
    "projection_weights": "projection_sha256",
    "cost_file": "cost_sha256",
}
CALLBACKS = "trainer.callbacks"
ROOT = "data.init_args.root"


class Role(Enum):
    """The part of a run that an option decides."""

    RESULT = "the result; a change on resume is recorded"
    KEPT = "the result, once for all: a checkpoint restores it, so that another value has no effect"
    MACHINE = "where and how a run is computed; the experiment is the same"
    SEED = "the random numbers: the runs of several seeds are averaged"
    CONTENT = "where something is; what it contains counts instead: fingerprints of data, hashes of weights"
    DISPLAY = "what is shown, saved or repeated, with the same result"


class Rule(NamedTuple):
    """The role of some options.

    Attributes:
        options: pattern of their whole dotted names; options inside of them have the same role.
        role: what they decide.
        resumes: what a change of them on resume is: ``free``, ``recorded`` in the result, or refused, ``kept``.
    """

    options: str
    role: Role
    resumes: Literal["free", "recorded", "kept"]


RULES = (  # the first one whose pattern matches counts
    Rule("seed_everything", Role.SEED, "kept"),
    Rule(r"data\.init_args\.seed", Role.SEED, "recorded"),
    Rule(
        r"data\.init_args\.(root|download|predict_dir|unlabelled|labelled|cache_dir|storage_options)",
        Role.CONTENT,
        "free",
    ),
    Rule(r"model\.init_args\.weights", Role.CONTENT, "kept"),
    Rule(r"model\.init_args\.(teacher_weights|projection_weights|teacher_sha256|cost_file)", Role.CONTENT, "free"),
    Rule(r"model\.init_args\.teacher_answers", Role.CONTENT, "free"),
    Rule("config|ckpt_path|weights_only|save_every_minutes", Role.DISPLAY, "free"),
    Rule(r"model\.init_args\.ensemble", Role.DISPLAY, "free"),  # extra results of a test
    Rule(r"model\.init_args\.teacher_answers_gb", Role.DISPLAY, "free"),
    Rule(
        r"trainer\.(default_root_dir|logger|enable_\w+|profiler|num_sanity_val_steps|log_every_n_steps|detect_anomaly"
        r"|fast_dev_run|barebones|max_time)",
        Role.DISPLAY,
        "free",
    ),
    Rule(r"trainer\.model_registry", Role.DISPLAY, "recorded"),
    Rule(r"trainer\.callbacks", Role.RESULT, "free"),  # compared by what they are: see records.callbacks
    Rule(
        r"optimizer|lr_scheduler|model\.class_path|model\.init_args\.(network|networks|optimizer|lr_scheduler"
        rf"|source_classes|new_head|{'|'.join(RATES)})",
        Role.KEPT,
        "kept",
    ),
    Rule(r"model\.init_args\.(num_classes|channels)", Role.MACHINE, "kept"),  # they come from the data
    Rule(r"trainer\.(benchmark|plugins)|data\.init_args\.(num_workers|on_error)", Role.MACHINE, "free"),
    Rule(
        r"trainer\.(accelerator|strategy|devices|num_nodes|precision|deterministic|use_distributed_sampler)"
        r"|data\.init_args\.decode_on_device|model\.init_args\.(fast|compile|branch_metrics_every)",
        Role.MACHINE,
        "recorded",
    ),
)
UNKNOWN = Rule("", Role.RESULT, "recorded")


def rule_of(option: str) -> Rule:
    """Return the rule of a dotted option, and for options that are not in the table that of results."""
    for rule in RULES:
        if re.fullmatch(rf"({rule.options})(\..*)?", option):
            return rule
    return UNKNOWN


def in_protocol(option: str) -> bool:
    """Return True if an option belongs to the protocol of a run."""
    return rule_of(option).role in (Role.RESULT, Role.KEPT, Role.MACHINE)
