"""Record one level's graph while a forward runs, for modules that torch.fx cannot read."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from .graph import Level


class RecordedLevel(Level):
    """The record of a module's forward: its calls of children and functions.

    A module that is called several times, such as a head on every level of a pyramid, has all its
    calls in one graph.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.graph = fx.Graph()
        self._names = {child: name for name, child in module.named_children()}
        self._known: dict[int, tuple[Tensor, fx.Node]] = {}  # keeps tensors, so ids stay unique

    rewritable = False

    def start(self, inputs: Any) -> None:
        for tensor in _tensors(inputs):
            self._bind(tensor, self.graph.placeholder(f"x{len(self._known)}"))

    def node(self, value: Any) -> Any:
        """A value with nodes instead of its tensors; unknown tensors become inputs."""
        if not isinstance(value, Tensor):
            return value if isinstance(value, int | float | str | bool | None) else None
        if id(value) not in self._known:
            self.start([value])
        return self._known[id(value)][1]

    def call(self, op: str, target: Any, args: Any, result: Any) -> None:
        tensors = _tensors(result)
        if not tensors:
            return  # a question about a tensor, such as its shape
        args = tuple(self.node(value) for value in tree_flatten(args)[0])
        made = self.graph.create_node(op, target, args)
        for tensor in tensors:
            whole = tensor is result
            part = made if whole else self.graph.call_function(_part, (made,))
            self._bind(tensor, part)

    def called(self, child: nn.Module, args: Any, result: Any) -> None:
        name = self._names.get(child)
        if name is None:
            self.call("call_function", _grandchild, args, result)
        else:
            self.call("call_module", name, args, result)

    def end(self, result: Any) -> None:
        self.graph.create_node("output", "output", (tree_map(self.node, result),))

    def child(self, node: fx.Node) -> nn.Module | None:
        return getattr(self.module, node.target) if node.op == "call_module" else None

    def _bind(self, tensor: Tensor, node: fx.Node) -> None:
        self._known[id(tensor)] = tensor, node


def _part(whole):
    """Represents taking a tensor out of the result of a call."""


def _grandchild(*args):
    """Represents calling a module that is not a child."""


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


class _Recorder(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.levels: dict[nn.Module, RecordedLevel] = {}
        self._stack: list[RecordedLevel] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self._stack:
            method = getattr(torch.Tensor, getattr(func, "__name__", ""), None) is func
            target = func.__name__ if method else func
            op = "call_method" if method else "call_function"
            self._stack[-1].call(op, target, (args, kwargs or {}), result)
        return result

    def enter(self, module, args, kwargs) -> None:
        level = self.levels.setdefault(module, RecordedLevel(module))
        level.start((args, kwargs))
        self._stack.append(level)

    def leave(self, module, args, kwargs, result) -> None:
        self._stack.pop().end(result)
        if self._stack:
            self._stack[-1].called(module, (args, kwargs), result)


def record(model: nn.Module, inputs: Iterable[Any]) -> dict[nn.Module, RecordedLevel]:
    """Run `model(*inputs)` in inference and record every module's forward."""
    recorder, hooks = _Recorder(), []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(recorder.enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(recorder.leave, with_kwargs=True))
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), recorder:
            model.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return recorder.levels
