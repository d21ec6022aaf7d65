"""Record a model's norms on images, one by one: moments of inputs, and clamped outputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from normdet.layers import BatchStatistics, FrozenBatchNorm2d, NormLayer
from normdet.layers.moments import instance_moments


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of each channel, in float64.

    Attributes:
        count: values per channel behind them.
        mean: `(C,)`.
        var: `(C,)`.
    """

    count: int
    mean: Tensor
    var: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """The moments of all values of `x` `(N, C, *S)`, which has at least one per channel."""
        count = x[0, 0].numel()
        parts = zip(*(moment.double().cpu() for moment in instance_moments(x)), strict=True)
        return cls.pool([cls(count, mean, var) for mean, var in parts])

    @classmethod
    def pool(cls, parts: list["Moments"]) -> "Moments":
        """The pooled moments of parts, weighted by their number of values."""
        total = sum(part.count for part in parts)
        mean = sum(part.mean * part.count for part in parts) / total
        var = sum((part.var + (part.mean - mean).square()) * part.count for part in parts) / total
        return cls(total, mean, var)


@dataclass
class Trace:
    """The record of one layer.

    Attributes:
        images: the moments of its input on each image it had values of.
        outputs: the number of values that its activation returned per channel.
        clamped: how many of these are at the activation's threshold, `(C,)`.
    """

    images: list[Moments] = field(default_factory=list)
    outputs: int = 0
    clamped: Tensor | None = None

    def batches(self, size: int) -> list[Moments]:
        """The moments of consecutive batches of `size` images; a last smaller one is left out."""
        starts = range(0, len(self.images) - size + 1, size)
        return [Moments.pool(self.images[start : start + size]) for start in starts]


def has_stored_statistics(module: nn.Module) -> bool:
    """Whether a module normalizes at test time by stored means and variances."""
    return isinstance(module, BatchStatistics | FrozenBatchNorm2d) and not (
        getattr(module, "running_mean", None) is None
        or getattr(module, "running_var", None) is None
    )


class Watch:
    """Hooks on some layers of a model, filling a :class:`Trace` each.

    Args:
        layers: by name. The inputs of those with stored statistics are measured, and the outputs of
            those with an activation.
    """

    def __init__(self, layers: Mapping[str, NormLayer]):
        self.traces = {name: Trace() for name in layers}
        self._layers = layers
        self._seen: dict[str, list[Moments]] = {}

    @contextmanager
    def image(self) -> Iterator[None]:
        """The context of the forward pass of one image."""
        self._seen = {name: [] for name in self._layers}
        hooks = [
            hook
            for name, layer in self._layers.items()
            for hook in (
                layer.register_forward_pre_hook(self._before(name)),
                layer.register_forward_hook(self._behind(name)),
            )
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for name, seen in self._seen.items():
            if seen:  # a head that levels share sees several maps of an image
                self.traces[name].images.append(Moments.pool(seen))

    def _before(self, name: str):
        def note(module: NormLayer, inputs: tuple) -> None:
            if has_stored_statistics(module) and inputs[0].numel():
                self._seen[name].append(Moments.of(inputs[0]))

        return note

    def _behind(self, name: str):
        def note(module: NormLayer, inputs: tuple, output: Tensor) -> None:
            clamped = module.clamped(output)
            if clamped is None or not output.numel():
                return
            trace = self.traces[name]
            channels = clamped.transpose(0, 1).flatten(1)
            trace.outputs += channels.shape[1]
            trace.clamped = channels.sum(1).cpu() + (0 if trace.clamped is None else trace.clamped)

        return note


@torch.no_grad()
def trace(model: nn.Module, layers: Mapping[str, NormLayer], images, forward=None) -> dict:
    """Run images through a model in test mode, one by one, and watch its layers.

    Args:
        layers: those to watch, by name.
        images: inputs of `forward`, of one image each.
        forward: runs one image; the model itself by default.

    Returns:
        A :class:`Trace` for every layer, by name.
    """
    watch = Watch(layers)
    model.eval()
    for image in images:
        with watch.image():
            (forward or model)(image)
    return watch.traces
