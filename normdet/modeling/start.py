"""Start new norms from data: put them in without changing the function of the network.

A norm that starts with weight 1 and bias 0 gives its channels unit scale, but the next layer was
initialized or trained for another. So a new norm gets the mean and deviation that its layer has
without it. With the plain layer's outputs `z` and the norm's own `h`, each per channel over
examples and space, `weight = std(z) / std(h)` and `bias = mean(z) - weight * mean(h)`. The plain
layer computes with the learned weight. This also undoes what a weight method such as WS does to
scale and mean.

The network runs as if it had no such norm. So the input of a layer does not depend on the norms
before it, and one pass is enough. A head that several feature levels share sees all of them.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import FrozenBatchNorm2d, NormLayer, PerExampleNorm
from ..layers.population import Moments, Population, learning_norms
from ..layers.reparametrized import Reparametrized, learned_weight, linear
from .normalized import layer_before
from .training_pass import training_pass


class _Site:
    """A new norm and the layer before it, during the pass.

    While it is open, the norm's output is replaced by what the layer computes without norm and
    weight method, activated. Both outputs are measured.
    """

    def __init__(self, name: str, norm: NormLayer, layer: nn.Module):
        self.name, self.norm, self.layer = name, norm, layer
        channels, device = norm.num_features, norm.weight.device
        self.plain = Moments(channels, device)
        self.own = Moments(channels, device)
        self._spread, self._calls = 0.0, 0
        self._seen: Tensor | None = None
        self._populations = [Population(part) for part in learning_norms(norm).values()]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Measure every call of the norm inside."""
        activation = self.norm.activation, self.norm.tau
        self._put_activation(None, None)
        handles = [
            self.layer.register_forward_pre_hook(self._see),
            self.norm.register_forward_hook(lambda *call: self._measure(activation, *call)),
        ]
        with ExitStack() as stack:
            for population in self._populations:
                stack.enter_context(population.watched())
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                self._put_activation(*activation)

    def _put_activation(self, activation: str | None, tau: nn.Parameter | None) -> None:
        self.norm.activation, self.norm.tau = activation, tau

    def _see(self, layer: nn.Module, inputs: tuple) -> None:
        self._seen = inputs[0]

    def _measure(self, activation, norm: NormLayer, inputs: tuple, output: Tensor) -> Tensor:
        plain = inputs[0]
        if isinstance(self.layer, Reparametrized):
            weight = learned_weight(self.layer)
            plain = linear(self.layer, self._seen, weight, self.layer.bias)
        if plain.numel():
            self.plain.take(plain)
            self.own.take(output)
            if isinstance(norm, PerExampleNorm):
                learned = 0 if norm.eps_l is None else norm.eps_l.abs()
                self._spread += float((norm.own_moments(inputs[0])[1] - learned).mean())
                self._calls += 1
        self._put_activation(*activation)
        try:
            return norm.activate(plain)
        finally:
            self._put_activation(None, None)

    def soften(self, keep: float) -> None:
        """Set the learned epsilon, if there is one, to the share `keep` of the norm's divisor."""
        if self._calls and getattr(self.norm, "eps_l", None) is not None:
            self.norm.eps_l.fill_(self._spread / self._calls * keep / (1 - keep))

    def start(self) -> bool:
        """Set the affine of channels that vary; return False if there was no input."""
        if self.plain.count < 2:
            return False
        own, plain = self.own.var.sqrt(), self.plain.var.sqrt()
        varies = (own > 1e-6) & (plain > 1e-12)
        weight = torch.where(varies, plain / own.clamp(min=1e-6), 1.0)
        bias = torch.where(varies, self.plain.mean - weight * self.own.mean, 0.0)
        self.norm.weight.copy_(weight)
        self.norm.bias.copy_(bias)
        for population in self._populations:
            population.learn()
        return True


def new_norms(model: nn.Module, prefixes: Collection[str] | None = None) -> dict[str, NormLayer]:
    """The norms, by name, that train and have a new affine: weight 1 and bias 0.

    Args:
        prefixes: the starts of their names; any by default.
    """
    return {
        name: norm
        for name, norm in model.named_modules()
        if (prefixes is None or name.startswith(tuple(prefixes)))
        and isinstance(norm, NormLayer)
        and not isinstance(norm, FrozenBatchNorm2d)
        and all(isinstance(getattr(norm, p, None), nn.Parameter) for p in ("weight", "bias"))
        and norm.weight.requires_grad
        and bool((norm.weight == 1).all() and (norm.bias == 0).all())
    }


@torch.no_grad()
def start_from_data(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    prefixes: Collection[str] | None = None,
    keep: float = 0.0,
    forward: Callable[[Any], Any] | None = None,
) -> list[str]:
    """Set the affine of new norms so that they change the function of the network least.

    Only the norms that are started change: their weight, bias, running averages and, with `keep`,
    learned epsilon. Each batch runs once without gradients, with `keep` twice. Nothing of
    activation size is kept.

    Args:
        model: a detector or any module; new norms are those of :func:`new_norms`.
        batches: inputs of the model as in training; 8 images do.
        prefixes: the names of the norms to start begin with one of these; all by default.
        keep: with a learned epsilon (`LEARNED_EPS`), the share of a per-example norm's divisor that
            is the same for all examples; 0 is the norm as its authors define it.
            forward: runs a batch; the model itself in training mode by default.

    Returns:
        The names of the norms that were started; those that saw no input are left out.

    Raises:
        NormdetError: an input the model refuses.
    """
    modules = dict(model.named_modules())
    sites = []
    for name, norm in new_norms(model, prefixes).items():
        layer = layer_before(name, modules)
        if layer in modules:
            sites.append(_Site(name, norm, modules[layer]))
    if not sites:
        return []
    batches = list(batches)
    if keep:
        training_pass(model, batches, forward, [site.open() for site in sites])
        for site in sites:
            site.soften(keep)
        sites = [_Site(site.name, site.norm, site.layer) for site in sites]
    training_pass(model, batches, forward, [site.open() for site in sites])
    return [site.name for site in sites if site.start()]
