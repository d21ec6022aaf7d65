"""Spectral Normalization (Miyato et al., 1802.05957): torch's, as a weight method."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrizations

from .reparametrized import WeightMethod, reparametrize


class SpectralNorm(WeightMethod):
    """`W / sigma(W)`: torch's parametrization, its singular vectors under `reweight.power`.

    Makes a step of power iteration in each training forward. The weight's scale is lost, so a plain
    weight keeps its function only if a norm follows. Fitting runs torch's 15 first steps.

    Args:
        weight: the layer's.
        out_dim: the dimension of its output channels.
        iterations: steps of power iteration each training forward.
        eps: keeps the singular vectors' norms from 0.
    """

    def __init__(
        self, weight: torch.Tensor, out_dim: int = 0, iterations: int = 1, eps: float = 1e-12
    ):
        super().__init__()
        self.settings = {"n_power_iterations": iterations, "eps": eps, "dim": out_dim}
        self.power = self._power(weight)

    def _power(self, weight: torch.Tensor) -> nn.Module:
        # torch makes its parametrization only on a module that holds the weight.
        holder = nn.Module()
        holder.weight = nn.Parameter(weight.detach().clone())
        # Keep the random start of the iteration from shifting all later random numbers.
        with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
            parametrizations.spectral_norm(holder, **self.settings)
        return holder.parametrizations.weight[0]

    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The singular vectors of the weight."""
        return {f"power.{key}": value for key, value in self._power(weight).state_dict().items()}

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # its products would run in half
            return self.power(weight)

    def norm_parameters(self) -> Iterator[nn.Parameter]:
        """Empty, since it has no parameters of its own."""
        return iter(())


def spectral_norm(module: nn.Module, iterations: int = 1) -> nn.Module:
    """The module, of Conv2d, ConvTranspose2d or Linear, under :class:`SpectralNorm`."""
    return reparametrize(module, SpectralNorm, iterations=iterations)
