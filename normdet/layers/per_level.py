"""Batch statistics for each level of an FPN in a shared head, with one affine for all levels."""

from collections.abc import Iterable

from torch import Tensor, nn

from ..ops import act
from ..ops.padded import Padded, like, plain
from .attentive_norm import Mixture
from .base import NormLayer


class PerLevelNorm(NormLayer, nn.ModuleList):
    """A norm with batch statistics, with a set of them for each level in turn and a shared affine.

    Levels differ in their statistics, so shared ones are wrong at test time (mmdetection#6515).
    State-dict keys are those of detectron2's `CycleBatchNormList`. Every use of the head must pass
    through all its levels, in order.

    Args:
        norms: one per level, all alike and without an activation; their affines are removed, but
            those of a :class:`Mixture`, which all levels then share.
        activation: `None`, `"ReLU"` or `"TLU"`, behind the shared affine.
    """

    batch_statistics = True

    def __init__(self, norms: Iterable[NormLayer], activation: str | None = None):
        super().__init__(norms)
        self.num_features = self[0].num_features
        if isinstance(self[0], Mixture):
            self.weight = self.bias = None
            for norm in self:
                for name, parameter in self[0].named_parameters():
                    norm.register_parameter(name, parameter)
        else:
            for norm in self:
                norm.weight = norm.bias = None
            self._init_affine(self.num_features)
        self._init_activation(self.num_features, activation)
        self.level = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self[self.level](x)
        self.level = (self.level + 1) % len(self)
        if isinstance(x, Padded):
            return like(self._affine(plain(x)), x)
        return self._affine(x)

    def _affine(self, x: Tensor) -> Tensor:
        y = x
        if self.weight is not None:
            y = x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return act(y.to(x.dtype), self.tau, activation=self.activation)

    def extra_repr(self) -> str:
        return f"{self.num_features}, activation={self.activation!r}"
