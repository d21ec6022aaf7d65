"""Run a model on batches in training mode, to watch it or to learn statistics."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from ..layers.population import Population, learning_norms


@torch.no_grad()
def training_pass(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
    watching: Iterable[AbstractContextManager] = (),
) -> None:
    """Run `batches` in training mode without gradients, and restore the model.

    Args:
        forward: runs a batch; the model itself by default.
        watching: a context that watches the model meanwhile.
    """
    # Losses write curves into detectron2's storage, but this pass belongs to no iteration.
    with ExitStack() as stack:
        for watcher in watching:
            stack.enter_context(watcher)
        stack.enter_context(_untouched(list(model.modules())))
        stack.enter_context(EventStorage())
        model.train()
        for batch in batches:
            (forward or model)(batch)


@contextmanager
def _untouched(modules: list[nn.Module]) -> Iterator[None]:
    """Restore the buffers and plain attributes that change while a model runs."""
    buffers = [(b, b.clone()) for m in modules for b in m.buffers(recurse=False)]
    attributes = [dict(vars(m)) for m in modules]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for module, values in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(values)


@torch.no_grad()
def update_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> list[str]:
    """Replace the running averages of every norm by the moments of `batches`.

    While weights change, running averages lag behind them; with fixed weights these are exact
    (PreciseBN, 2105.07576, section 3). Works for BN, SyncBN, BRN, BIN, SwitchNorm, EvalNorm,
    InPlaceABN and MeanOnlyBN. With several processes each runs its own batches, and all end with
    the same numbers.

    Args:
        batches: inputs of the model as in training; some hundred do.
        forward: runs a batch; the model itself in training mode by default.

    Returns:
        The names of the norms that learned; those without inputs keep their averages.
    """
    populations = {name: Population(norm) for name, norm in learning_norms(model).items()}
    if not populations:
        return []
    watchers = [population.watched() for population in populations.values()]
    training_pass(model, batches, forward, watchers)
    return [name for name, population in populations.items() if population.learn()]
