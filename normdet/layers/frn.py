"""Filter Response Normalization (Singh and Krishnan, 1911.09737)."""

import torch
from torch import nn

from ..ops import frn_tlu
from .base import NormLayer


class FilterResponseNorm(NormLayer):
    """`gamma * x / sqrt(mean_S(x^2) + eps) + beta`, then the activation (1911.09737, eq. 1 to 5).

    No mean is subtracted and nothing depends on the batch: training and test are the same function.
    With one element a channel (1x1 maps, fully connected input) the fixed epsilon makes the
    normalized value a sign with no gradient: `learned_eps` is for these.

    Saves `x` and one float per `(n, c)` for backward. Sensitive to the first learning rates: warm
    up.

    Args:
        num_features: channels `C`.
        eps: the fixed epsilon.
        learned_eps: add the learned `abs(eps_l)` to `eps`, from 1e-4 (section 3.3).
        activation: `None`, `"ReLU"` or `"TLU"` (the fused pair of the paper).
        backend: see :mod:`normdet.ops`.

    Raises:
        NormdetError: on an input of another rank or channel count, or an unknown activation.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        learned_eps: bool = False,
        activation: str | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.backend = backend
        self._init_affine(num_features)
        self._init_activation(num_features, activation)
        self.eps_l = nn.Parameter(torch.full((1,), 1e-4)) if learned_eps else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input(x)
        eps = self.eps if self.eps_l is None else self.eps + self.eps_l.abs()
        return frn_tlu(
            x, self.weight, self.bias, self.tau,
            eps=eps, activation=self.activation, backend=self.backend,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + (", learned_eps=True" if self.eps_l is not None else "")


class FilterResponseNorm1d(FilterResponseNorm):
    """FRN over `(N, C, L)`, or over fully connected `(N, C)`; see :class:`FilterResponseNorm`."""

    ranks = (2, 3)


class FilterResponseNorm2d(FilterResponseNorm):
    """FRN over `(N, C, H, W)`; see :class:`FilterResponseNorm`."""

    ranks = (4,)


class FilterResponseNorm3d(FilterResponseNorm):
    """FRN over `(N, C, D, H, W)`; see :class:`FilterResponseNorm`."""

    ranks = (5,)
