"""Group Normalization (Wu and He, 1803.08494) with its two cases, layer and instance norm."""

import math

import torch

from ..errors import NormdetError
from ..ops import check_groups, group_norm_act, scripted
from ..ops.reference import over_groups
from .moments import group_moments
from .per_example import PerExampleNorm

AMP_OUTPUTS = ("stock", "input")


def groups_for(channels: int, num_groups: int) -> int:
    """The groups for `channels` if `num_groups` are asked for: the greatest common divisor.

    It is the full number if that divides the channels, as in detectron2; else there are fewer and
    larger groups (80 channels: 16 groups of 5).
    """
    return math.gcd(channels, num_groups)


class GroupNorm(PerExampleNorm):
    """Normalizes each example over `S` and the `C / G` channels of a group, any rank `(N, C, *S)`.

    Saves `x` and two floats per `(n, group)` for backward.

    Args:
        num_groups: groups `G`; must divide `num_features` (:func:`groups_for` finds one that does).
        num_features: channels `C`.
        eps: added to the variance.
        activation: `None`, `"ReLU"` or `"TLU"`.
        backend: see :mod:`normdet.ops`.
        amp_output: the output's dtype under autocast on CUDA: `"stock"` for fp32, as torch's group
            norm gives it, or `"input"` for the input's, which moves and keeps half as many bytes.
        learned_eps: add the learned `abs(eps_l)` to `eps`. The larger it is relative to the
            variance, the less the norm removes an example's own contrast.

    Raises:
        NormdetError: if `num_groups` does not divide `num_features`, or on unfit input.
    """

    family = "GN"
    scriptable = True

    def __init__(
        self,
        num_groups: int,
        num_features: int,
        eps: float = 1e-5,
        activation: str | None = None,
        backend: str = "auto",
        learned_eps: bool = False,
        amp_output: str = "stock",
    ):
        super().__init__()
        if amp_output not in AMP_OUTPUTS:
            raise NormdetError(f"amp_output {amp_output!r} is not one of {AMP_OUTPUTS}")
        self.num_groups = check_groups(num_groups, num_features)
        self.num_features = num_features
        self.backend = backend
        self.amp_output = amp_output
        self._init_epsilon(eps, learned_eps)
        self._init_affine(num_features)
        self._init_activation(num_features, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return scripted.group_norm_act(
                x, self.num_groups, self.weight, self.bias, self.tau, self.eps, self.eps_l,
                self.activation,
            )  # fmt: skip
        else:
            return self._fused(x)

    def _normalize(self, x, tau, **options) -> torch.Tensor:
        return group_norm_act(
            x, self.num_groups, self.weight, self.bias, tau,
            eps=self._eps(), dtype=self._output_dtype(x), backend=self.backend, **options,
        )  # fmt: skip

    def _output_dtype(self, x: torch.Tensor) -> torch.dtype | None:
        """fp32 if autocast would make torch's group norm return it, which is so on CUDA alone."""
        half = x.dtype in (torch.float16, torch.bfloat16)
        stock = self.amp_output == "stock" and x.is_cuda and half
        return torch.float32 if stock and torch.is_autocast_enabled() else None

    def own_moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, var = group_moments(x, self.num_groups)
        return mean, var + self._eps()

    def expected_moments(self, mean, square):
        mean, square = (over_groups(m, self.num_groups) for m in (mean, square))
        return mean, square - mean.square() + self._eps()

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {super().extra_repr()}"


class LayerNorm(GroupNorm):
    """One group: normalizes each example over all of `C` and `S` (1607.06450)."""

    family = "LN"

    def __init__(self, num_features: int, **kwargs):
        super().__init__(1, num_features, amp_output="input", **kwargs)


class InstanceNorm(GroupNorm):
    """A group per channel: normalizes each example and channel over `S` (1607.08022)."""

    family = "IN"

    def __init__(self, num_features: int, **kwargs):
        super().__init__(num_features, num_features, amp_output="input", **kwargs)
