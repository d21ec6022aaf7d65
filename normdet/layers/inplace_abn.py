"""In-Place Activated Batch Norm (Rota Bulo et al., 1712.02616)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import NormdetError
from ..ops.reference import wide
from .batch_statistics import RunningNorm
from .moments import spread, sum_channels

INVERTIBLE = (None, "leaky_relu", "elu")


def _activate(y: Tensor, activation: str | None, slope: float) -> Tensor:
    if activation == "leaky_relu":
        return F.leaky_relu(y, slope)
    return F.elu(y) if activation == "elu" else y


def _invert(out: Tensor, activation: str | None, slope: float) -> tuple[Tensor, Tensor | float]:
    """The activation's input, and its derivative there, from its output."""
    if activation == "leaky_relu":
        derivative = torch.where(out > 0, 1.0, slope).to(out.dtype)
        return out / derivative, derivative
    if activation == "elu":
        # Far below zero the output is exactly -1, and its input is lost.
        low = out.clamp(-1 + torch.finfo(out.dtype).eps, 0)
        return torch.where(out > 0, out, low.log1p()), torch.where(out > 0, 1.0, low + 1)
    return out, 1.0


class _Normalize(torch.autograd.Function):
    """`activation(x_hat * scale + shift)` by the batch's moments; keeps only its output."""

    @staticmethod
    def forward(ctx, x, scale, shift, mean, invstd, count, activation, slope, sync):
        y = torch.addcmul(spread(shift, x), wide(x) - spread(mean, x), spread(invstd * scale, x))
        out = _activate(y, activation, slope).to(x.dtype)
        ctx.save_for_backward(out, scale, shift, invstd, count)
        ctx.activation, ctx.slope, ctx.sync = activation, slope, sync
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out, scale, shift, invstd, count = ctx.saved_tensors
        y, derivative = _invert(wide(out), ctx.activation, ctx.slope)
        x_hat = (y - spread(shift, out)) / spread(scale, out)
        kept = wide(grad) * derivative
        grad_shift, grad_scale = sum_channels(kept), sum_channels(kept * x_hat)
        sums = torch.stack([grad_shift, grad_scale])
        if ctx.sync:
            dist.all_reduce(sums)
        along_one, along_x_hat = sums / count.clamp(min=1)
        kept = kept - spread(along_one, out) - x_hat * spread(along_x_hat, out)
        grad_x = (kept * spread(scale * invstd, out)).to(out.dtype)
        return grad_x, grad_scale, grad_shift, None, None, None, None, None, None


class InPlaceABN(RunningNorm):
    """BN and an invertible activation that keep only their output for backward.

    Backward inverts the activation and the affine to find `x_hat`. This keeps one buffer of
    activation size less than BN with leaky ReLU. The affine's factor is `abs(gamma) + eps`, as in
    the authors' code, so that it can be inverted. A negative gamma of weights trained as plain BN
    therefore counts as positive. In half precision `x_hat` is only as exact as the output.

    Args:
        activation: `"leaky_relu"`, `"elu"` or `None`.
        slope: of the leaky ReLU below zero.
        kwargs: see :class:`RunningNorm`.

    Raises:
        NormdetError: on an activation that cannot be inverted.
    """

    def __init__(
        self,
        num_features: int,
        *,
        activation: str | None = "leaky_relu",
        slope: float = 0.01,
        **kwargs,
    ):
        if activation not in INVERTIBLE or (activation == "leaky_relu" and slope <= 0):
            raise NormdetError(
                f"InPlaceABN inverts its activation, one of {INVERTIBLE} with a positive slope; "
                f"it cannot invert {activation!r} with slope {slope}"
            )
        super().__init__(num_features, activation=None, **kwargs)
        self.activation = activation
        self.slope = slope

    def activate_normalized(self, y: Tensor) -> Tensor:
        return y

    def activate(self, x: Tensor) -> Tensor:
        return _activate(x, self.activation, self.slope)

    def normalize(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            mean, var, count = self.batch_moments(x)
        invstd = (var + self.eps).rsqrt()
        scale, shift = torch.ones_like(invstd), torch.zeros_like(invstd)
        if self.weight is not None:
            scale = torch.where(self.weight < 0, -self.weight, self.weight) + self.eps
        if self.bias is not None:
            shift = self.bias
        if not self.learns_from(x):
            y = F.batch_norm(x, mean, var, scale, shift, False, 0.0, self.eps)
            return _activate(y, self.activation, self.slope)
        return _Normalize.apply(
            x, scale, shift, mean, invstd, count, self.activation, self.slope, self.pools_workers()
        )
