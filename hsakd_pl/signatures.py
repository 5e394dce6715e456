"""Signatures of classes whose options a base class declares once, and which take them as ``**options``."""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
else:

    class Unpack:
        """Stand in for ``typing.Unpack`` at run time.

        Type checkers and editors read names and types of the options from an unpacked TypedDict. jsonargparse would
        list them too, but without defaults and descriptions. Without the annotation it follows ``**options`` into
        ``super().__init__`` and finds all of it there.
        """

        def __class_getitem__(cls, options: Any) -> Any:
            return Any


class FullSignature:
    """The signature of a class with the options of its bases, computed when ``inspect.signature`` or ``help`` ask."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")  # the signature of an instance is that of its __call__
        return full_signature(owner)


@cache
def full_signature(cls: type) -> inspect.Signature:
    """Return the signature of a class where ``*args`` and ``**options`` are replaced by what its bases take for them.

    jsonargparse decides which these are, so that Python and the command line agree.
    """
    from jsonargparse import ArgumentParser

    names = ArgumentParser(exit_on_error=False).add_class_arguments(cls, fail_untyped=False)
    parameters: dict[str, inspect.Parameter] = {}
    positional = True
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *declared = inspect.signature(vars(base)["__init__"]).parameters.values()
        for parameter in declared:
            if parameter.name in names and parameter.name not in parameters:
                kind = parameter.kind if positional else parameter.KEYWORD_ONLY
                parameters[parameter.name] = parameter.replace(kind=kind)
        positional = positional and any(parameter.kind is parameter.VAR_POSITIONAL for parameter in declared)
    return inspect.Signature(sorted(parameters.values(), key=lambda parameter: parameter.kind))
