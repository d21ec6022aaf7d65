"""Switchable Normalization (Luo et al., 1806.10779)."""

import math

import torch
from torch import Tensor, nn

from .batch_statistics import RunningNorm
from .moments import instance_moments, pool


class SwitchNorm(RunningNorm):
    """`(x - sum_k w_k mu_k) / sqrt(sum_k v_k var_k + eps) * gamma + beta`, k in IN, LN, BN.

    `w` and `v` are the softmaxes of `mean_weight` and `var_weight` `(3,)`, which start at equal
    shares. The layer's and the batch's moments follow from the instance moments. So there is one
    pass over `x`, and only `x` is kept for backward. At test time the BN part uses its running
    averages.

    With `dims` 0 an instance has only one value, so it switches between LN and BN alone.

    Args:
        kwargs: see :class:`RunningNorm`.
    """

    needs_batch = False
    by_example = True

    def __init__(self, num_features: int, *, dims: int | None = None, **kwargs):
        super().__init__(num_features, dims=dims, **kwargs)
        self.kinds = ("ln", "bn") if dims == 0 else ("in", "ln", "bn")
        self.mean_weight = nn.Parameter(torch.zeros(len(self.kinds)))
        self.var_weight = nn.Parameter(torch.zeros(len(self.kinds)))

    def normalize(self, x: Tensor) -> Tensor:
        instance = instance_moments(x)
        layer = (moment.unsqueeze(1) for moment in pool(*instance, dim=1))
        batch = self.batch_moments(x, instance)[:2]
        means, variances = zip(instance, layer, batch, strict=True)
        mean = self._blend(self.mean_weight, means)
        var = self._blend(self.var_weight, variances)
        return self.scale_and_shift(x, mean, (var + self.eps).rsqrt())

    def _blend(self, weight: Tensor, moments: tuple[Tensor, ...]) -> Tensor:
        used = moments[-len(self.kinds) :]
        return sum(w * moment for w, moment in zip(weight.softmax(0), used, strict=True))

    @torch.no_grad()
    def rely_on_batch(self) -> None:
        """Give the batch's moments a share of 0.99: nearly BN, but the shares can still learn."""
        for weight in (self.mean_weight, self.var_weight):
            weight.zero_()
            weight[-1] = math.log(99.0 * (len(self.kinds) - 1))

    def scalars(self) -> dict[str, float]:
        return {
            f"{moment}_{kind}": float(share)
            for moment, weight in (("mean", self.mean_weight), ("var", self.var_weight))
            for kind, share in zip(self.kinds, weight.softmax(0), strict=True)
        }
