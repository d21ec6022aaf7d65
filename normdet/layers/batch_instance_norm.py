"""Batch-Instance Normalization (Nam and Kim, 1805.07925)."""

import torch
from torch import Tensor, nn

from .batch_statistics import RunningNorm
from .moments import instance_moments


class BatchInstanceNorm(RunningNorm):
    """`(rho * x_hat_BN + (1 - rho) * x_hat_IN) * gamma + beta`, one gate `rho` per channel.

    The gate starts at 1, plain BN, and is kept in [0, 1] by :func:`normdet.layers.after_step` after
    each optimizer step. At test time the BN part takes its running averages, the IN part the
    example itself.

    Keeps `x` for backward; one pass gives the moments of both parts.

    Args:
        rate: the gate's learning rate as a multiple of the rest's; 10 in the paper.
        kwargs: see :class:`RunningNorm`.
    """

    by_example = True

    def __init__(self, num_features: int, *, rate: float = 10.0, **kwargs):
        super().__init__(num_features, **kwargs)
        self.rate = rate
        self.rho = nn.Parameter(torch.ones(num_features))

    def normalize(self, x: Tensor) -> Tensor:
        mean, var = instance_moments(x)
        batch_mean, batch_var, _ = self.batch_moments(x, (mean, var))
        batch_scale = self.rho * (batch_var + self.eps).rsqrt()
        scale = batch_scale + (1 - self.rho) * (var + self.eps).rsqrt()
        # Compute both parts from the instance mean, so that nothing large cancels.
        return self.scale_and_shift(x, mean, scale, (mean - batch_mean) * batch_scale)

    @torch.no_grad()
    def after_step(self) -> None:
        self.rho.clamp_(0, 1)

    def rates(self) -> dict[str, float]:
        return {"rho": self.rate}

    def scalars(self) -> dict[str, float]:
        return {"rho": float(self.rho.mean())}
