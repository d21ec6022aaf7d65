"""GN without its mean: Filter Response Normalization over groups."""

import torch

from ..ops import check_groups
from ..ops.reference import over_groups
from .frn import FilterResponseNorm
from .moments import instance_moments


class GroupRMSNorm(FilterResponseNorm):
    """`gamma * x / sqrt(mean_G(x^2) + eps) + beta`, `G` being space and a group's channels.

    This is between FRN, where each channel is a group, and GN, which subtracts the group's mean. It
    keeps the relative strengths of a group's channels, and the group's mean.

    Saves `x` and one float per `(n, group)` for backward. Takes any `(N, C, *S)`.

    Args:
        num_groups: groups `G`; must divide `num_features`.
        num_features: channels `C`.
        kwargs: see :class:`FilterResponseNorm`.

    Raises:
        NormdetError: if `num_groups` does not divide `num_features`, or on unfit input.
    """

    family = "RMSGN"

    def __init__(self, num_groups: int, num_features: int, eps: float = 1e-5, **kwargs):
        super().__init__(num_features, eps, **kwargs)
        self.num_groups = check_groups(num_groups, num_features)

    def own_moments(self, x):
        mean, var = instance_moments(x)
        square = over_groups(mean.square() + var, self.num_groups)
        return torch.zeros_like(mean), square + self._eps()

    def expected_moments(self, mean, square):
        return torch.zeros_like(mean), over_groups(square, self.num_groups) + self._eps()

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {super().extra_repr()}"
