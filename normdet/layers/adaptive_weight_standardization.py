"""Adaptive Weight Standardization: WS that keeps the function of weights trained without it."""

import torch
from torch import nn

from ..ops import standardize_weight
from .reparametrized import WeightMethod, per_output, reparametrize


class AdaptiveWeightStandardization(WeightMethod):
    """`gain * (w - mean(w)) / sqrt(var(w) + eps) + shift` per output channel.

    Weight Standardization (1903.10520) as mmcv's ConvAWS has it for DetectoRS (2006.02334). `gain`
    and `shift` are the deviation and the mean of the weight that training starts from, and stay
    fixed. So the layer's function is unchanged when training starts. They are taken from the
    layer's weight when it is built, and again when a plain weight is loaded; a checkpoint saved
    under AWS has its own.

    Saves nothing of activation size.

    Args:
        weight: the layer's.
        out_dim: the dimension of its output channels.
        eps: added to the unbiased variance, under the root.
    """

    def __init__(self, weight: torch.Tensor, out_dim: int = 0, eps: float = 1e-5):
        super().__init__()
        self.out_dim = out_dim
        self.eps = eps
        for name, value in self.fit(weight).items():
            self.register_buffer(name, value)

    def _filter_size(self, weight: torch.Tensor) -> int:
        return weight.numel() // max(weight.shape[self.out_dim], 1)

    @torch.no_grad()
    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The deviation and mean `(C_out, 1, ...)` of the weight."""
        dims, wide = per_output(weight, self.out_dim)
        correction = 1 if self._filter_size(weight) > 1 else 0
        var, mean = torch.var_mean(wide, dims, correction=correction, keepdim=True)
        gain = (var + self.eps).sqrt()
        return {"gain": gain.to(weight.dtype), "shift": mean.to(weight.dtype)}

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        # The fused operation takes the biased variance; the factor makes it the unbiased one.
        size = self._filter_size(weight)
        unbiased = (size - 1) / size if size > 1 else 1.0
        standard = standardize_weight(
            weight, dialect="timm", eps=self.eps * unbiased, out_dim=self.out_dim
        )
        return torch.addcmul(self.shift, standard, self.gain * unbiased**0.5)


def standardize_adaptively(module: nn.Module, eps: float = 1e-5) -> nn.Module:
    """The module under :class:`AdaptiveWeightStandardization`, its function unchanged.

    Takes a Conv2d, ConvTranspose2d or Linear.
    """
    return reparametrize(module, AdaptiveWeightStandardization, eps=eps)
