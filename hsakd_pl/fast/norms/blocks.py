"""Let blocks of layers compute their norms in one operation with the additions and ReLUs after them."""

import operator
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn import functional as F

from hsakd_pl.fast.kernels.library import library
from hsakd_pl.fast.norms.layers import has_hooks, is_suitable, norm_relu
from hsakd_pl.fast.norms.recomputed import outputs_recomputed

PACKAGES = ("hsakd_pl", "torch", "torchvision")  # to trace a block runs its code, which in others may have effects
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")

METHOD = "forward"  # the method that a converted block overrides
JOINED = "_joined_norms"  # attribute of a converted block


class Joined(NamedTuple):
    """The forward pass of a block in which norms are joined with the ReLUs after them.

    Attributes:
        forward: function of the block and its inputs.
        inside: names of the sequences and ReLUs whose own ``forward`` it does not call.
    """

    forward: Callable[..., Any]
    inside: tuple[str, ...]


def convert(network: nn.Module) -> None:
    """Let the blocks of a network use :func:`hsakd_pl.fast.norms.layers.norm_relu`, on a CPU.

    ``forward`` is overridden on the instance of each block in which a norm and a ReLU follow each other; its class,
    parameters, hooks and name stay the same. Without AVX2 or a C compiler, nothing changes.
    """
    for block in network.modules():
        if _may_join(block) and library() is not None:
            joined = _joined(block)
            if joined is not None:
                vars(block)[JOINED] = joined
                vars(block)[METHOD] = MethodType(_forward, block)


def revert(network: nn.Module) -> None:
    """Undo :func:`convert`."""
    for block in network.modules():
        if JOINED in vars(block):
            del vars(block)[JOINED]
            del vars(block)[METHOD]


def _forward(block: nn.Module, *inputs: Any, **options: Any) -> Any:
    joined: Joined = vars(block)[JOINED]
    if _is_traced() or any(has_hooks(block.get_submodule(name)) for name in joined.inside):
        return type(block).forward(block, *inputs, **options)
    with outputs_recomputed():
        return joined.forward(block, *inputs, **options)


def _is_traced() -> bool:
    """Return whether a compiler, a tracer or a function transform has to see the norms themselves."""
    if torch.compiler.is_compiling():  # first, as a compiler does not know the functions below
        return True
    return torch._C._get_tracing_state() is not None or torch._C._functorch.peek_interpreter_stack() is not None


def _may_join(block: nn.Module) -> bool:
    if type(block).__module__.partition(".")[0] not in PACKAGES or METHOD in vars(block):
        return False
    layers = block.modules() if type(block) is nn.Sequential else block.children()
    return any(is_suitable(layer) for layer in layers)


class SequencesOpen(Tracer):
    """Trace the calls of layers and blocks, and look into sequences of them, whose names are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is not nn.Sequential:
            return True
        self.opened.append(module_qualified_name)
        return False


def _joined(block: nn.Module) -> Joined | None:
    """Join norms with the ReLUs after them; return None if the block has none, or cannot be traced."""
    tracer = SequencesOpen()
    training = block.training
    try:
        block.training = not training
        in_other_mode = str(SequencesOpen().trace(block))
        block.training = training
        graph = tracer.trace(block)
    except Exception:  # tracing calls the block with placeholders, on which its code may fail in any way
        return None
    finally:
        block.training = training
    if str(graph) != in_other_mode:  # as with dropout called as a function
        return None
    layers = dict(block.named_modules())
    relus = [node for node in graph.nodes if _is_relu(node, layers)]
    joined = [relu for relu in relus if _join(graph, relu, layers)]
    if not joined:
        return None
    inside = tracer.opened + [str(relu.target) for relu in joined if relu.op == "call_module"]
    forward = type(GraphModule(block, graph)).forward  # a function of any module with these layers
    return Joined(forward, tuple(inside))


def _join(graph: Graph, relu: Node, layers: Mapping[str, nn.Module]) -> bool:
    """Replace a ReLU and the norm before it, with the addition between them, if any, by one call, if possible."""
    source: Any = relu.args[0]
    if _is_norm(source, layers):
        norm, residual = source, None
        place = norm  # where nothing can have changed the norm's input since
    elif _is_addition(source) and len(source.users) == 1:
        norm, residual = source.args  # in this order: what is added to may be changed in place
        if not _is_norm(norm, layers) or len(norm.args[0].users) > 1:
            return False
        place = relu
    else:
        return False
    with graph.inserting_before(place):
        layer = graph.get_attr(norm.target)
        activation = graph.get_attr(str(relu.target)) if relu.op == "call_module" else None
        joined = graph.call_function(norm_relu, (layer, activation, norm.args[0], residual))
    relu.replace_all_uses_with(joined)
    graph.erase_node(relu)
    if source is not norm:
        graph.erase_node(source)
    graph.erase_node(norm)
    return True


def _is_relu(node: Node, layers: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(layers[str(node.target)]) is nn.ReLU
    return node.target in RELUS and len(node.args) == 1 and node.kwargs.keys() <= {"inplace"}


def _is_addition(node: Any) -> bool:
    return isinstance(node, Node) and node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs


def _is_norm(node: Any, layers: Mapping[str, nn.Module]) -> bool:
    """Return whether a node is the call of a suitable norm whose result is used once."""
    if not isinstance(node, Node) or node.op != "call_module" or len(node.args) != 1 or len(node.users) != 1:
        return False
    return is_suitable(layers[str(node.target)])
