"""Batch Renormalization (Ioffe, 1702.03275)."""

import torch
from torch import Tensor

from .batch_statistics import RunningNorm


class BatchRenorm(RunningNorm):
    """`((x - mu_B) / sigma_B * r + d) * gamma + beta`: BN corrected towards its test-time form.

    `r = sigma_B / sigma` and `d = (mu_B - mu) / sigma` are taken from the running averages before
    they learn the batch, clipped to `[1 / r_max, r_max]` and `[-d_max, d_max]`, and carry no
    gradient. Within the limits, training computes the same as test time. The layer starts as BN
    (limits 1 and 0) and the limits open linearly, counted in optimizer steps by the buffer `steps`:
    call :func:`normdet.layers.after_step` after each.

    Keeps `x` for backward.

    Args:
        r_max: the limit of `r` when open.
        d_max: the limit of `d` when open.
        warmup: optimizer steps as BN.
        open: optimizer steps after these over which the limits open. The paper takes 20,000 for `d`
            and 35,000 for `r`.
        momentum: 0.01 in the paper, since a smoother average corrects better.
        kwargs: see :class:`RunningNorm`.
    """

    tests_as_bn = True

    def __init__(
        self,
        num_features: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5000,
        open: int = 20000,
        momentum: float = 0.01,
        **kwargs,
    ):
        super().__init__(num_features, momentum=momentum, **kwargs)
        self.r_max = r_max
        self.d_max = d_max
        self.warmup = warmup
        self.open = open
        self.register_buffer("steps", torch.tensor(0, dtype=torch.long))

    def limits(self) -> tuple[Tensor, Tensor]:
        """The largest `r` and `d` allowed now."""
        opened = ((self.steps - self.warmup) / max(self.open, 1)).clamp(0, 1)
        return 1 + opened * (self.r_max - 1), opened * self.d_max

    def normalize(self, x: Tensor) -> Tensor:
        mean, sigma = self.running_mean.clone(), (self.running_var + self.eps).sqrt()
        batch_mean, batch_var, _ = self.batch_moments(x)
        batch_sigma = (batch_var + self.eps).sqrt()
        with torch.no_grad():
            r_max, d_max = self.limits()
            r = (batch_sigma / sigma).clamp(1 / r_max, r_max)
            d = ((batch_mean - mean) / sigma).clamp(-d_max, d_max)
        return self.scale_and_shift(x, batch_mean, r / batch_sigma, d)

    def after_step(self) -> None:
        if self.training:
            self.steps.add_(1)

    def scalars(self) -> dict[str, float]:
        r_max, d_max = self.limits()
        return {"r_max": float(r_max), "d_max": float(d_max)}
