"""Moving Average Batch Normalization (Yan et al., 2001.06838)."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.reference import wide
from .batch_statistics import RunningNorm
from .moments import instance_moments, spread, sum_channels

_LARGEST_CORRECTION = 5.0  # of the normalizer, either way; the authors' code


class _Normalize(torch.autograd.Function):
    """`(x - centre) * rstd * gamma + beta`, whose gradient uses a mean over recent batches."""

    @staticmethod
    def forward(ctx, x, weight, bias, centre, rstd, correction, past_grads, row, moving):
        scale = rstd * correction
        y = torch.addcmul(spread(bias, x), wide(x) - spread(centre, x), spread(scale * weight, x))
        ctx.save_for_backward(x, weight, centre, rstd, correction, row, moving)
        ctx.past_grads = past_grads
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, centre, rstd, correction, row, moving = ctx.saved_tensors
        count = max(x.numel() // len(weight), 1)
        grad, z = wide(grad), (wide(x) - spread(centre, x)) * spread(rstd, x)
        along = sum_channels(grad * z)
        pushed = along * weight * correction / count
        ctx.past_grads[row] = pushed.to(ctx.past_grads.dtype)
        pushed = torch.where(moving, ctx.past_grads.mean(0).to(pushed.dtype), pushed)
        back = grad * spread(weight * correction, x) - z * spread(pushed.to(z.dtype), x)
        dx = (back * spread(rstd, x)).to(x.dtype)
        return dx, along * correction, sum_channels(grad), *(None,) * 6


class MovingAverageBatchNorm(RunningNorm):
    """`x / sqrt(s + eps) * gamma + beta` by moving averages, forward and backward (section 4).

    No mean is subtracted, so the weights before it should be centred (weight method WC). Let `s`
    be the mean square of the last `buffer` batches and `S` its running average. Forward divides by
    the root of `s`. After `open` batches it corrects this by `sqrt(s / S)`, within a factor of 5,
    and so divides by the root of `S`, as test time does. Backward uses the mean of `x_hat * dx_hat`
    over the last `buffer` batches. The first `warmup` batches, and at least `buffer`, are
    normalized by themselves.

    State-dict keys are those of BN and three buffers. `running_var` is the mean square about
    `running_mean`, which does not change. It is 0, or the mean of the BN whose weights were loaded;
    this keeps the BN's function. At test time the norm folds into the convolution as BN does. Keeps
    `x` for backward. Each worker has its own averages.

    Args:
        momentum: the share of a batch in the running average.
        buffer: batches in the moving averages.
        warmup: batches before these are used.
        open: batches before the correction is used.
        kwargs: see :class:`RunningNorm`.
    """

    tests_as_bn = True

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float = 0.02,
        buffer: int = 16,
        warmup: int = 100,
        open: int = 1000,
        **kwargs,
    ):
        super().__init__(num_features, momentum=momentum, **kwargs)
        self.buffer, self.warmup, self.open = buffer, warmup, open
        self.register_buffer("steps", torch.tensor(0, dtype=torch.long))
        self.register_buffer("past_squares", torch.zeros(buffer, num_features))
        self.register_buffer("past_grads", torch.zeros(buffer, num_features))

    def normalize(self, x: Tensor) -> Tensor:
        if not self.learns_from(x):
            rstd = (self.running_var + self.eps).rsqrt()
            return self.scale_and_shift(x, self.running_mean, rstd)
        if x.numel() == self.num_features:
            self.refuse_one_value(x)
        with torch.no_grad():
            # The step's numbers stay on the device: reading them would wait for it in each layer.
            row, moving = self.steps % self.buffer, self.steps >= max(self.buffer, self.warmup)
            square = self._square(x)
            self.past_squares[row] = square.to(self.past_squares.dtype)
            square = torch.where(moving, self.past_squares.mean(0).to(square.dtype), square)
            count = torch.full((), x.numel() // self.num_features, device=x.device)
            self._learn(self.running_mean, square, count)
            correction = ((square + self.eps) / (self.running_var + self.eps)).sqrt()
            correction = correction.clamp(1 / _LARGEST_CORRECTION, _LARGEST_CORRECTION)
            corrects = self.steps >= max(self.open, self.warmup)
            correction = torch.where(corrects, correction, 1.0)
            self.steps.add_(1)
            rstd = (square + self.eps).rsqrt()
        weight = torch.ones_like(rstd) if self.weight is None else self.weight
        bias = torch.zeros_like(rstd) if self.bias is None else self.bias
        return _Normalize.apply(
            x, weight, bias, self.running_mean.clone(), rstd, correction.to(rstd.dtype),
            self.past_grads, row, moving,
        )  # fmt: skip

    def _square(self, x: Tensor) -> Tensor:
        """The batch's mean square about the centre, `(C,)`."""
        mean, var = instance_moments(x)
        return (var + (mean - self.running_mean).square()).mean(0)

    def scalars(self) -> dict[str, float]:
        moving = self.past_squares.mean(0)
        return {"correction": float(((moving + self.eps) / (self.running_var + self.eps)).mean())}
