"""YAML read with care: what stands twice, is too deep or too large is an error."""

from typing import Any

import yaml
from jsonargparse import get_loader
from yaml.nodes import MappingNode, Node, ScalarNode

DEEPEST, LONGEST, MOST_VALUES = 50, 4_000, 100_000  # of this package: 6 levels, paths, 100 values


def load_yaml(text: str) -> Any:
    """Read YAML as jsonargparse does, unless a key stands twice or it is too deep or too large to be meant so.

    Raises yaml.YAMLError, which the parser reports with the option's name.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # does not recurse
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            value = getattr(event, "value", "")
            if depth > DEEPEST or len(value) > LONGEST or "\0" in value:
                raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep, or a value that is none")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _count(root, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES} values")
        return get_loader("yaml")(text)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # of numbers and dates that are none
        raise yaml.YAMLError(str(error)) from error


def _count(node: Node, counted: dict[int, int]) -> int:
    """Count the values below a node, those behind an alias each time; YAMLError for a key that stands twice."""
    if id(node) in counted:
        return counted[id(node)]
    counted[id(node)] = MOST_VALUES + 1  # for a node that is met again inside of itself
    if isinstance(node, MappingNode):
        keys = [key for key, _ in node.value if isinstance(key, ScalarNode) and key.value != "<<"]
        seen: set[str] = set()
        for key in keys:
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value!r} stands twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        parts = [part for pair in node.value for part in pair]
    else:
        parts = node.value if isinstance(node.value, list) else []
    counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
    return counted[id(node)]
