"""Read YAML without repeated keys, and of limited depth and size."""

from typing import Any

import yaml
from jsonargparse import get_loader
from yaml.nodes import MappingNode, Node, ScalarNode

# Limits well above what configurations of the package need: 6 levels, paths, 100 values
DEEPEST = 50
LONGEST = 4_000
MOST_VALUES = 100_000


def load_yaml(text: str) -> Any:
    """Read YAML as jsonargparse does.

    Raises yaml.YAMLError, which the parser reports with the option's name, also for a repeated key, and for text that
    is nested too deeply or too large.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # does not recurse
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            value = getattr(event, "value", "")
            if depth > DEEPEST or len(value) > LONGEST or "\0" in value:
                raise yaml.YAMLError(
                    f"nested more than {DEEPEST} levels deep, or a value of more than {LONGEST} characters"
                )
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _count(root, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {MOST_VALUES} values")
        return get_loader("yaml")(text)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # for invalid numbers and dates
        raise yaml.YAMLError(str(error)) from error


def _count(node: Node, counted: dict[int, int]) -> int:
    """Return the number of values of a node, with aliases expanded; raises YAMLError for a repeated key."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = MOST_VALUES + 1  # for a node that contains itself
    parts: list[Node] = []
    if isinstance(node, MappingNode):
        _check_keys(node)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node.value, list):
        parts = node.value
    counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
    return counted[id(node)]


def _check_keys(node: MappingNode) -> None:
    """Raise YAMLError if a mapping repeats a key."""
    names: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.value != "<<":
            if key.value in names:
                raise yaml.YAMLError(f"the key {key.value!r} is repeated in line {key.start_mark.line + 1}")
            names.add(key.value)
