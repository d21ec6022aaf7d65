"""Batch norm of fixed statistics whose affine trains: mmdetection's default (`norm_eval=True`)."""

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.padded import Padded, like, plain
from .batch_norm import FrozenBatchNorm2d
from .moments import spread


class AffineBatchNorm2d(FrozenBatchNorm2d):
    """`(x - running_mean) / sqrt(running_var + eps) * weight + bias`, weight and bias trained.

    Training and test are the same function. State-dict keys are BN's. Weights whose statistics are
    folded into the affine can be trained too. Takes any `(N, C, *S)`; saves
    `x` for the gradient of `weight`.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, activation: str | None = None):
        super().__init__(num_features, eps, activation)
        for name in ("weight", "bias"):
            value = self._buffers.pop(name)
            self.register_parameter(name, nn.Parameter(value))

    def _by_fixed_statistics(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input(x)
        if isinstance(x, Padded):
            return like(self._by_fixed_statistics(plain(x)), x)
        affine = self.weight, self.bias
        if x.numel() == 0:  # keep the graph connected, since other workers share gradients
            weight, bias = (spread(p, x) for p in affine)
            return self.activate((x * weight + bias).to(x.dtype))
        y = F.batch_norm(x, self.running_mean, self.running_var, *affine, eps=self.eps)
        return self.activate(y)
