"""Weight centralization: subtract the filters' means, as MABN needs it (2001.06838)."""

import torch

from .reparametrized import WeightMethod, per_output, reparametrize


class WeightCentralization(WeightMethod):
    """`w - mean(w)` per output channel, over all else; nothing is learned beside the weight.

    Keeps an input's common offset out of the layer's output, for norms that subtract no mean.

    Args:
        weight: the layer's.
        out_dim: the dimension of its output channels.
    """

    zero_sum = True

    def __init__(self, weight: torch.Tensor, out_dim: int = 0):
        super().__init__()
        self.out_dim = out_dim

    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        dims, wide = per_output(weight, self.out_dim)
        return (wide - wide.mean(dims, keepdim=True)).to(weight.dtype)


def centralize(module: torch.nn.Module) -> torch.nn.Module:
    """The module, of Conv2d, ConvTranspose2d or Linear, under :class:`WeightCentralization`."""
    return reparametrize(module, WeightCentralization)
