"""Filter Response Normalization (Singh and Krishnan, 1911.09737)."""

import torch

from ..ops import frn_tlu, scripted
from .moments import instance_moments
from .per_example import PerExampleNorm


class FilterResponseNorm(PerExampleNorm):
    """`gamma * x / sqrt(mean_S(x^2) + eps) + beta`, then the activation (1911.09737, eq. 1 to 5).

    No mean is subtracted and nothing depends on the batch: training and test are the same function.
    With one element per channel (1x1 maps, fully connected input) and a fixed epsilon, the
    normalized value is almost the sign of `x` and has no gradient. Use `learned_eps` there.

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

    family = "FRN"
    scriptable = True

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
        self.num_groups: int | None = None  # each channel is a group
        self.backend = backend
        self._init_epsilon(eps, learned_eps)
        self._init_affine(num_features)
        self._init_activation(num_features, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return scripted.frn_tlu(
                x, self.weight, self.bias, self.tau, self.eps, self.eps_l, self.num_groups,
                self.activation,
            )  # fmt: skip
        else:
            return self._fused(x)

    def _normalize(self, x, tau, **options) -> torch.Tensor:
        return frn_tlu(
            x, self.weight, self.bias, tau, eps=self._eps(), num_groups=self.num_groups,
            backend=self.backend, **options,
        )  # fmt: skip

    def own_moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, var = instance_moments(x)
        return torch.zeros_like(mean), mean.square() + var + self._eps()

    def expected_moments(self, mean, square):
        return torch.zeros_like(mean), square + self._eps()


class FilterResponseNorm1d(FilterResponseNorm):
    """FRN over `(N, C, L)`, or over fully connected `(N, C)`; see :class:`FilterResponseNorm`."""

    ranks = (2, 3)


class FilterResponseNorm2d(FilterResponseNorm):
    """FRN over `(N, C, H, W)`; see :class:`FilterResponseNorm`."""

    ranks = (4,)


class FilterResponseNorm3d(FilterResponseNorm):
    """FRN over `(N, C, D, H, W)`; see :class:`FilterResponseNorm`."""

    ranks = (5,)
