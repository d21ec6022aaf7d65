"""Learn EvalNorm's blend on a trained model, from images alone and without touching a weight."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.layers import EvalNorm
from normdet.layers.moments import instance_moments, pool


@dataclass
class BlendRow:
    """The result for one layer.

    Attributes:
        layer: its name in the model.
        blend: the share of an example's own moments, 0 for plain BN.
        error: mean squared distance of its output from its output in training mode, divided by the
            variance of the latter; `None` if it saw no batch.
        error_of_bn: the same under plain BN.
    """

    layer: str
    blend: float
    error: float | None
    error_of_bn: float | None


class _Trial:
    """Replaces a layer's `normalize`: normalizes as training does, and tries every blend.

    The distance between two affine functions of an example follows from its mean and variance. So
    a trial works on `(N, C)` numbers and needs no pass over the activations.
    """

    # Denser near 0, because large batches give small shares.
    BLENDS = torch.linspace(0, 1, 65, dtype=torch.float64).square()

    def __init__(self, layer: EvalNorm):
        self.layer = layer
        self.errors = torch.zeros(len(self.BLENDS), dtype=torch.float64)
        self.power = 0.0

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        own = instance_moments(x)
        if len(x) < 2:  # a batch of one example gives nothing to learn
            return layer.normalize_with(x, *layer.blended_moments(*own, layer.blend))
        batch = pool(*own, dim=0)
        for k, blend in enumerate(self.BLENDS.tolist()):
            self.errors[k] += self._distance(own, batch, layer.blended_moments(*own, blend))
        self.power += self._power(batch)
        return layer.normalize_with(x, *batch)

    def _distance(self, own, batch, blended) -> float:
        (mean, var), (batch_mean, batch_var), (blended_mean, blended_var) = own, batch, blended
        scale = (batch_var + self.layer.eps).rsqrt()
        blended_scale = (blended_var + self.layer.eps).rsqrt()
        offset = (mean - batch_mean) * scale - (mean - blended_mean) * blended_scale
        squares = (scale - blended_scale).square() * var + offset.square()
        return float((squares * self._gain()).mean())

    def _power(self, batch) -> float:
        share = batch[1] / (batch[1] + self.layer.eps)
        return float((share * self._gain()).mean())

    def _gain(self) -> Tensor | float:
        weight = self.layer.weight
        return 1.0 if weight is None else weight.square()

    def row(self, name: str) -> BlendRow:
        best = int(self.errors.argmin())
        if not self.power:
            return BlendRow(name, float(self.layer.blend), None, None)
        error, error_of_bn = self.errors[best] / self.power, self.errors[0] / self.power
        return BlendRow(name, float(self.BLENDS[best]), float(error), float(error_of_bn))


@contextmanager
def _in_test_mode(model: nn.Module):
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def fit_eval_norm(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
) -> list[BlendRow]:
    """Learn the blend of every EvalNorm of a trained model from unlabelled images.

    Each batch runs through the model in test mode, but is normalized by its own moments as in
    training. Each layer gets the blend with which single examples come closest to that. Only the
    layers' `blend` changes. :func:`normdet.layers.to_eval_norm` turns a trained model's BNs into
    EvalNorms.

    Args:
        batches: inputs of the model, each of as many images as a worker had in a training step;
            some 50 do. They are not kept.
        forward: the function that runs a batch; by default the model itself.

    Returns:
        A row per layer, in the model's order.

    Raises:
        NormdetError: if the model has no EvalNorm, or no layer saw more than one example at once.
    """
    trials = {
        name: _Trial(module)
        for name, module in model.named_modules()
        if isinstance(module, EvalNorm) and not module.is_frozen
    }
    if not trials:
        raise NormdetError("the model has no EvalNorm to fit: give it one with to_eval_norm(model)")
    with _in_test_mode(model):
        try:
            for trial in trials.values():
                trial.layer.normalize = trial
            for batch in batches:
                (forward or model)(batch)
        finally:
            for trial in trials.values():
                del trial.layer.normalize
    rows = [trial.row(name) for name, trial in trials.items()]
    if all(row.error is None for row in rows):
        raise NormdetError(
            "no EvalNorm saw more than one example at once: fit on batches of the training's size"
        )
    for row, trial in zip(rows, trials.values(), strict=True):
        trial.layer.blend.fill_(row.blend)
    return rows
