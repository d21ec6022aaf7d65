"""Batch statistics in a head shared over FPN levels: one set a level, one affine for all."""

from torch import Tensor, nn

from ..layers import NormLayer
from ..ops import act
from ..options import NormOption


class PerLevelNorm(NormLayer, nn.ModuleList):
    """Any norm with batch statistics, cycling through a set per level; the affine is shared.

    Levels differ in their statistics, so shared ones are wrong at test time (mmdetection#6515).
    State-dict keys are those of detectron2's `CycleBatchNormList`. Every use of the head must pass
    through all its levels, in order.

    Args:
        levels: how many maps the head is applied to in turn.
        num_features: channels `C` of each map `(N, C, H, W)`.
    """

    batch_statistics = True

    def __init__(self, option: NormOption, levels: int, num_features: int, activate: bool = False):
        super().__init__(option.build_norm(num_features) for _ in range(levels))
        for norm in self:
            norm.weight = norm.bias = None
        self.num_features = num_features
        self.option = str(option)
        self._init_affine(num_features)
        self._init_activation(num_features, option.activation if activate else None)
        self._level = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self[self._level](x)
        self._level = (self._level + 1) % len(self)
        y = x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return act(y.to(x.dtype), self.tau, activation=self.activation)

    def extra_repr(self) -> str:
        return f"{self.num_features}, activation={self.activation!r}"


def build_shared_norm(
    option: NormOption, channels: int, *, activate: bool, levels: int = 1
) -> nn.Module:
    """The norm of a convolution that is applied to `levels` maps in turn."""
    norm = option.build_norm(channels, activate=activate)
    if levels > 1 and norm.batch_statistics:
        return PerLevelNorm(option, levels, channels, activate)
    return norm
