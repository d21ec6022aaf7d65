"""Scaled Weight Standardization (Brock et al., 2101.08692), of networks without norms."""

import torch
from torch import nn

from ..ops import standardize_weight
from .reparametrized import WeightMethod, per_output, reparametrize
from .weight_standardization import refuse_single_weights


class ScaledWeightStandardization(WeightMethod):
    """`gain * (w - mean(w)) / sqrt(var(w) + eps) / sqrt(fan_in)` per output channel (equation 2).

    With a gain of 1 a layer keeps the variance of inputs that are independent and of mean 0. The
    gain is learned, as in 2101.08692 and in timm, whose biased variance and epsilon it has. A plain
    weight that is loaded keeps its deviations through the gain and loses its means.

    Saves nothing of activation size.

    Args:
        weight: the layer's.
        out_dim: the dimension of its output channels.
        eps: added to the biased variance, under the root.
    """

    zero_sum = True

    def __init__(self, weight: torch.Tensor, out_dim: int = 0, eps: float = 1e-6):
        super().__init__()
        self.out_dim, self.eps = out_dim, eps
        shape = [1] * weight.dim()
        shape[out_dim] = weight.shape[out_dim]
        self.gain = nn.Parameter(torch.ones(shape, dtype=weight.dtype, device=weight.device))

    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The gain `(C_out, 1, ...)` that keeps the deviations of the weight."""
        dims, wide = per_output(weight, self.out_dim)
        var = wide.var(dims, correction=0, keepdim=True)
        return {"gain": ((var + self.eps) * self._fan_in(weight)).sqrt().to(weight.dtype)}

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        standard = standardize_weight(
            weight, dialect="timm", eps=self.eps, out_dim=self.out_dim
        )
        return standard * (self.gain * self._fan_in(weight) ** -0.5)

    def _fan_in(self, weight: torch.Tensor) -> int:
        return weight.numel() // max(weight.shape[self.out_dim], 1)


def standardize_scaled(module: nn.Module, eps: float = 1e-6) -> nn.Module:
    """The module, of Conv1d to 3d, ConvTranspose2d or Linear, under the scaled method.

    Raises:
        NormdetError: each filter has a single weight, which standardization would make 0.
    """
    refuse_single_weights(module, "SWS")
    return reparametrize(module, ScaledWeightStandardization, eps=eps)
