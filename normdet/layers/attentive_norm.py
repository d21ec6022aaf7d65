"""Attentive Normalization (Li et al., 1908.01259), over the statistics of GN or of BN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import check_groups
from ..ops.reference import wide
from .base import NormLayer
from .batch_statistics import RunningNorm
from .moments import affine, group_moments, instance_moments

_EPS = 1e-3  # added to the variance that the attention sees, as in the authors' code


class Mixture(NormLayer):
    """A mixture of affines for each example: `x_hat * sum_k(a_k gamma_k) + sum_k(a_k beta_k)`.

    The weights `a` `(N, K)` of an example, each in [0, 1], are
    `hard_sigmoid(LN(attention @ (mean_S(x) / sqrt(var_S(x) + 1e-3))))`: section 3.2, with the input
    and the norm that the authors' code has over GN. Its variance is the biased one here, so that
    maps of one pixel have one. As the authors' do, the affines start around 1 and 0, deviation 0.1.
    """

    def _init_mixture(self, mixture: int) -> None:
        channels = self.num_features
        self.weight = nn.Parameter(torch.empty(mixture, channels).normal_(1.0, 0.1))
        self.bias = nn.Parameter(torch.empty(mixture, channels).normal_(0.0, 0.1))
        attention = torch.empty(mixture, channels).normal_(0.0, (2 / mixture) ** 0.5)
        self.attention = nn.Parameter(attention)
        self.attention_weight = nn.Parameter(torch.ones(mixture))
        self.attention_bias = nn.Parameter(torch.zeros(mixture))

    def _mixed(
        self, x: Tensor, instance: tuple[Tensor, Tensor], mean: Tensor, var: Tensor
    ) -> Tensor:
        """The norm of `x` by a mean and a variance `(N, C)` or `(C,)`.

        Args:
            instance: the instance moments of `x`, which choose among the affines.
        """
        with torch.autocast(x.device.type, enabled=False):  # keep these products in fp32
            shares = self._shares(*instance)
            scale, shift = (shares @ p.to(shares.dtype) for p in (self.weight, self.bias))
        return affine(x, mean, (var + self.eps).rsqrt() * scale, shift)

    def _shares(self, mean: Tensor, var: Tensor) -> Tensor:
        """The weights `(N, K)` of the affines, from the instance moments `(N, C)`."""
        seen = mean * (var + _EPS).rsqrt()
        attention, gain, offset = (
            wide(p).to(seen.dtype)
            for p in (self.attention, self.attention_weight, self.attention_bias)
        )
        return F.hardsigmoid(F.layer_norm(seen @ attention.T, gain.shape, gain, offset, self.eps))

    def expected_moments(self, mean: Tensor, square: Tensor) -> tuple:
        return NormLayer.expected_moments(self, mean, square)  # refuses: the affine varies

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mixture={len(self.weight)}"


class AttentiveNorm(Mixture):
    """A :class:`Mixture` over GN's `x_hat`. Nothing depends on the batch.

    One pass for the statistics of both; keeps `x` for backward.

    Args:
        num_groups: groups `G`; must divide `num_features`.
        num_features: channels `C`.
        mixture: affines `K`. The paper has 10, and 20 in the last two stages.
        eps: added to the variance of a group.
        activation: `None`, `"ReLU"` or `"TLU"`.

    Raises:
        NormdetError: if `num_groups` does not divide `num_features`, or on unfit input.
    """

    def __init__(
        self,
        num_groups: int,
        num_features: int,
        mixture: int = 10,
        eps: float = 1e-5,
        activation: str | None = None,
    ):
        super().__init__()
        self.num_groups = check_groups(num_groups, num_features)
        self.num_features, self.eps = num_features, eps
        self._init_mixture(mixture)
        self._init_activation(num_features, activation)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        instance = instance_moments(x)
        return self.activate(self._mixed(x, instance, *group_moments(x, self.num_groups, instance)))

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {super().extra_repr()}"


class AttentiveBatchNorm(Mixture, RunningNorm):
    """A :class:`Mixture` over BN's `x_hat`, which takes its running averages at test time.

    The attention is normalized by LN, as over GN: the authors' BN of it would take its statistics
    from one value for each image, and of two values nothing but their order is left.

    One pass for the statistics of both; keeps `x` for backward.

    Args:
        mixture: affines `K`. The paper has 10, and 20 in the last two stages.
        kwargs: see :class:`RunningNorm`.
    """

    by_example = True

    def __init__(self, num_features: int, *, mixture: int = 10, **kwargs):
        super().__init__(num_features, **kwargs)
        self._init_mixture(mixture)

    def normalize(self, x: Tensor) -> Tensor:
        instance = instance_moments(x)
        mean, var, _ = self.batch_moments(x, instance)
        return self._mixed(x, instance, mean, var)
