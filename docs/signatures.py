"""Griffe extension: on the API page, classes show the options that they pass on to their bases, as in ``help()``."""

import inspect
from importlib import import_module
from typing import Any

import griffe


class FullSignatures(griffe.Extension):
    """Replaces ``**options`` by the parameters of ``inspect.signature``, written as in the source."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Replace the parameters of one class."""
        if "__init__" not in cls.members:
            return
        runtime_class = getattr(import_module(cls.module.path), cls.name, None)
        signature = getattr(runtime_class, "__signature__", None)
        if signature is None:
            return
        declared: dict[str, griffe.Parameter] = {}
        for base in reversed([cls, *cls.mro()]):
            if "__init__" in base.members:
                declared |= {parameter.name: parameter for parameter in base.members["__init__"].parameters}
        parameters = [declared["self"]]
        for name, parameter in signature.parameters.items():
            kind = griffe.ParameterKind.positional_or_keyword
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                kind = griffe.ParameterKind.keyword_only
            source = declared[name]
            parameters.append(griffe.Parameter(name, annotation=source.annotation, kind=kind, default=source.default))
        cls.members["__init__"].parameters = griffe.Parameters(*parameters)
