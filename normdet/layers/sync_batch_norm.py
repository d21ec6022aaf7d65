"""Batch norm over all workers: torch's `SyncBatchNorm`, but on CPU too and for any shares."""

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


def _per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _sum_channels(x: torch.Tensor) -> torch.Tensor:
    return x.sum([d for d in range(x.dim()) if d != 1])


def pooled_moments(x: torch.Tensor, group=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean `(C,)`, biased variance `(C,)` and element count per channel of `x` over all workers.

    Each worker weighs as many elements as it holds, none included. Two small all-reduces; the
    deviations are taken from the pooled mean, so nothing cancels.
    """
    sums = torch.cat([_sum_channels(x), x.new_tensor([x.numel() // x.shape[1]])])
    dist.all_reduce(sums, group=group)
    count = sums[-1]
    mean = sums[:-1] / count.clamp(min=1)
    squares = _sum_channels((x - _per_channel(mean, x)).square())
    dist.all_reduce(squares, group=group)
    return mean, squares / count.clamp(min=1), count


class _Normalize(torch.autograd.Function):
    """`(x - mean) * invstd * weight + bias` whose statistics come from all workers' `x`.

    Backward all-reduces two sums, so every worker must run it. The gradients of `weight` and `bias`
    are this worker's share, as for any parameter under data parallelism.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, invstd, count, group):
        ctx.save_for_backward(x, weight, mean, invstd, count)
        ctx.group = group
        x_hat = (x.to(mean.dtype) - _per_channel(mean, x)) * _per_channel(invstd, x)
        return (x_hat * _per_channel(weight, x) + _per_channel(bias, x)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, invstd, count = ctx.saved_tensors
        wide = grad.to(mean.dtype)
        x_hat = (x.to(mean.dtype) - _per_channel(mean, x)) * _per_channel(invstd, x)
        grad_weight, grad_bias = _sum_channels(wide * x_hat), _sum_channels(wide)
        sums = torch.stack([grad_bias, grad_weight])
        dist.all_reduce(sums, group=ctx.group)
        mean_grad, mean_grad_x_hat = sums / count.clamp(min=1)
        centred = wide - _per_channel(mean_grad, x) - x_hat * _per_channel(mean_grad_x_hat, x)
        grad_x = centred * _per_channel(weight * invstd, x)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None, None


class _SyncBatchNorm:
    """BN with the statistics of the concatenated batch of all workers, each share of any size.

    One worker alone, or no process group, makes it plain BN. In training every worker must call it,
    in forward and in backward, an empty share included. Saves `x`.
    """

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().normalize(x)
        if dist.get_world_size() == 1:
            return super().normalize(x)
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        mean, var, count = pooled_moments(wide)
        self._update_running(mean, var, count)
        invstd = (var + self.eps).rsqrt()
        return _Normalize.apply(x, self.weight, self.bias, mean, invstd, count, None)

    @torch.no_grad()
    def _update_running(self, mean, var, count) -> None:
        if count <= 1:
            return  # no unbiased variance to learn from
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = var * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class SyncBatchNorm1d(_SyncBatchNorm, BatchNorm1d):
    """Synchronized BN over `(N, C)` or `(N, C, L)`."""


class SyncBatchNorm2d(_SyncBatchNorm, BatchNorm2d):
    """Synchronized BN over `(N, C, H, W)`."""


class SyncBatchNorm3d(_SyncBatchNorm, BatchNorm3d):
    """Synchronized BN over `(N, C, D, H, W)`."""
