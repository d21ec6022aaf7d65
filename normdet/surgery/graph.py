"""One level of a network as a graph: how a module's forward calls its children."""

import warnings
from collections.abc import Iterator

from torch import fx, nn

from . import known


class _OneLevel(fx.Tracer):
    """A tracer that treats every child as a leaf; each child has its own graph."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


class Level:
    """The graph of one module's forward.

    Attributes:
        module: the module.
        graph: torch.fx's.
        rewritable: whether the graph is the whole forward.
    """

    rewritable = True

    def __init__(self, module: nn.Module):
        self.module = module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.graph = _OneLevel().trace(module)

    def child(self, node: fx.Node) -> nn.Module | None:
        """The child a node calls, if it calls one."""
        if node.op != "call_module":
            return None
        return self.module.get_submodule(node.target)

    def calls(self, child: nn.Module) -> list[fx.Node]:
        return [node for node in self.graph.nodes if self.child(node) is child]

    def activation(self, node: fx.Node) -> str | None:
        """See :func:`known.activation_name`."""
        if node.op == "call_module":
            return known.activation_name(self.child(node))
        if node.op in ("call_function", "call_method"):
            return known.activation_name(node.target)
        return None

    def is_addition(self, node: fx.Node) -> bool:
        return node.op in ("call_function", "call_method") and known.is_addition(node.target)

    def readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """The nodes that read a value, looking through nodes that pass it on unchanged."""
        for user in node.users:
            child = self.child(user)
            if child is not None and known.passes_on(child):
                yield from self.readers(user)
            elif not known.asks(user.target):
                yield user

    def source(self, node: fx.Node) -> fx.Node:
        """The node that a value comes from, looking through nodes that pass it on unchanged."""
        child = self.child(node)
        if child is not None and known.passes_on(child) and isinstance(node.args[0], fx.Node):
            return self.source(node.args[0])
        return node


def level_of(module: nn.Module) -> Level | None:
    """The graph of a module's forward; None if only running it would show it.

    A forward that branches on its input, or differs between training and inference, has no single
    graph.
    """
    try:
        graphs = []
        was = module.training
        for mode in (True, False):
            module.training = mode  # the module's own; its children are leaves
            graphs.append(Level(module))
        module.training = was
    except Exception:  # a forward may raise anything if it gets no tensor
        module.training = was
        return None
    training, inference = graphs
    return inference if str(training.graph) == str(inference.graph) else None


def rewrite(module: nn.Module, graph: fx.Graph) -> None:
    """Make a module compute a changed graph; its keys stay.

    Its class becomes a subclass of the one it had, so `isinstance` and methods still work.
    """
    graph.lint()
    kind = type(module)
    made = fx.GraphModule(module, graph, class_name=kind.__name__)
    body = {"forward": type(made).forward, "__module__": kind.__module__, "code": made.code}
    module.__class__ = type(kind.__name__, (kind,), body)
