"""Options that a base class declares once and its subclasses take as ``**options``."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
else:

    class Unpack:
        """Stand for ``Any`` at run time.

        Type checkers and editors see the real ``Unpack`` and read the options' names and types from a TypedDict.
        jsonargparse would read them there too, but a TypedDict has no defaults and no sentences; it finds both if it
        follows ``**options`` into the base class, as it does for ``Any``.
        """

        def __class_getitem__(cls, options: type) -> Any:
            return Any


class FullSignature:
    """Make ``inspect.signature`` and ``help`` show the options that a class passes on to its bases.

    Examples:
        >>> class Base:
        ...     __signature__ = FullSignature()
        ...
        ...     def __init__(self, root: str = "data", *, seed: int = 0) -> None: ...
        >>> class Mine(Base):
        ...     def __init__(self, *args, my_option: int = 1, **options) -> None: ...
        >>> inspect.signature(Mine)
        <Signature (root: str = 'data', *, my_option: int = 1, seed: int = 0)>
    """

    def __get__(self, instance: object, cls: type) -> inspect.Signature:
        """Return the signature of ``cls`` with its bases' parameters in place of ``*args`` and ``**options``."""
        parameters: dict[str, inspect.Parameter] = {}
        positional = True
        for base in cls.__mro__:
            if "__init__" not in vars(base):
                continue
            _, *declared = inspect.signature(vars(base)["__init__"]).parameters.values()
            kinds = {parameter.kind for parameter in declared}
            for parameter in declared:
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    continue
                kind = parameter.kind if positional else parameter.KEYWORD_ONLY
                parameters.setdefault(parameter.name, parameter.replace(kind=kind))
            positional = positional and inspect.Parameter.VAR_POSITIONAL in kinds
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
        return inspect.Signature(sorted(parameters.values(), key=lambda parameter: parameter.kind))
