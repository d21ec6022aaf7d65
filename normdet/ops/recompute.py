"""Outputs that are recomputed in backward instead of kept.

A fused norm keeps its input, and the layer after it, such as a convolution, keeps the norm's
output. Within :class:`recomputed` that layer keeps a handle to the norm's node in the graph
instead. When its backward asks for the output, the norm runs forward once more on the input it
kept. It is the same kernel on the same numbers, so every gradient has the same bits. This saves a
buffer per norm at the cost of elementwise work.

A tensor is replaced by a handle only if it is an output just made: same memory, shape, strides and
version. Anything else is kept as usual: an output that was changed in place or cast by autocast, a
view of one, one of an operator under torch.compile.
"""

import threading
import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor


class _Local(threading.local):
    current: "recomputed | None" = None


_local = _Local()


def current() -> "recomputed | None":
    """The innermost context of this thread."""
    return _local.current


class recomputed(torch.autograd.graph.saved_tensors_hooks):
    """Context in which the outputs of fused norms are not kept for backward.

    The innermost saved-tensor hook wins, so inside `torch.utils.checkpoint` its hooks apply.
    """

    def __init__(self):
        super().__init__(self._pack, _unpack)
        self._made: dict[int, tuple[weakref.ref[Tensor], Callable]] = {}

    def __enter__(self):
        super().__enter__()
        self._outer = current()
        _local.current = self

    def __exit__(self, *exception):
        _local.current = self._outer
        self._made.clear()
        super().__exit__(*exception)

    def _pack(self, x: Tensor):
        find, again = self._made.get(x.data_ptr(), (None, None))
        y = None if find is None else find()
        # While y lives it owns its memory, so no other tensor can be there.
        if y is None or y.grad_fn is None or not _same(x, y):
            return x, x._version
        return partial(again, y.grad_fn)  # the graph holds the node anyway


def enter() -> None:
    """Enter a context, for callers that cannot use `with`."""
    recomputed().__enter__()


def leave() -> None:
    """Leave the innermost context; without one nothing happens."""
    if (context := current()) is not None:
        context.__exit__(None, None, None)


def made(y: Tensor, again: Callable[..., Tensor]) -> Tensor:
    """Tell the current context, if any, that `again(y.grad_fn)` computes `y` again."""
    context = current()
    if context is not None and y.requires_grad and y.numel():
        context._made[y.data_ptr()] = weakref.ref(y), again
    return y


def _same(x: Tensor, y: Tensor) -> bool:
    return (
        x._version == 0 == y._version
        and x.dtype is y.dtype
        and x.shape == y.shape
        and x.stride() == y.stride()
    )


def _unpack(kept: tuple[Tensor, int] | partial) -> Tensor:
    """Return the saved tensor. With hooks torch does not check versions, so this does."""
    if isinstance(kept, partial):
        return kept()
    x, version = kept
    if x._version != version:
        raise RuntimeError(
            f"a tensor {tuple(x.shape)} needed for backward has been modified by an inplace "
            f"operation: it is at version {x._version}, expected version {version}"
        )
    return x
