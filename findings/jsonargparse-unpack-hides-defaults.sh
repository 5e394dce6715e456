#!/usr/bin/env bash
# jsonargparse does not join the two halves of a typed **kwargs. Where a subclass declares
# `def __init__(self, **options: Unpack[Options])` and hands them to `super().__init__(**options)`, the options appear
# with the types of the TypedDict alone: neither the defaults nor the descriptions of the parent are shown, and the
# parsed configuration, which runs are recorded with, lacks them. The same class with an untyped **options has both.
# Most people expect that adding a type to **options only adds information.
# jsonargparse 4.53.0, 2026-11-29
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install -q uv
env/bin/python -m uv pip install -q --python env/bin/python 'jsonargparse[signatures]==4.53.0' typing-extensions==4.16.0
OMP_NUM_THREADS=1 env/bin/python - <<'PROGRAM'
import jsonargparse
from jsonargparse import ArgumentParser
from typing_extensions import TypedDict, Unpack


class Options(TypedDict, total=False):
    momentum: float


class Base:
    def __init__(self, *, momentum: float = 0.9) -> None:
        """Initialise.

        Args:
            momentum: factor of the last step.
        """


class Untyped(Base):
    def __init__(self, **options) -> None:
        super().__init__(**options)


class Typed(Base):
    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)


def shown(theclass):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(theclass, "model")
    help_of_option = parser.format_help().rpartition("--model.momentum MOMENTUM")[2]
    return " ".join(help_of_option.split()), parser.parse_args([]).as_dict()


print("jsonargparse", jsonargparse.__version__)
untyped_help, untyped = shown(Untyped)
typed_help, typed = shown(Typed)
print("  untyped:", untyped_help, untyped)
print("  typed:  ", typed_help, typed)
assert untyped == {"model": {"momentum": 0.9}} and not typed.get("model"), (untyped, typed)
assert "0.9" in untyped_help and "0.9" not in typed_help
print("as described")
PROGRAM
