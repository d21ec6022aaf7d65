"""Means and variances, of examples, batches and all workers, and the affine that uses them.

Only two functions work on tensors of activation size, :func:`instance_moments` and :func:`affine`.
Each keeps `x` for backward and nothing else of its size. A method's own formula is computed between
them, by autograd over `(N, C)` or `(C,)` numbers.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops import recording
from ..ops.padded import Padded, crops, like, plain
from ..ops.reference import var_mean, wide
from ..ops.tiles import is_tiled


def _space(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def sum_space(x: Tensor) -> Tensor:
    """`(N, C, *S)` summed to `(N, C)`."""
    return x.sum(_space(x)) if x.dim() > 2 else x


def sum_channels(x: Tensor) -> Tensor:
    """`(N, C, *S)` summed to `(C,)`."""
    return x.sum([d for d in range(x.dim()) if d != 1])


def spread(p: Tensor, x: Tensor) -> Tensor:
    """Shape `(C,)` or `(N, C)` to act on `x` `(N, C, *S)`, in its precision."""
    p = wide(p).to(wide(x.new_empty(0)).dtype)
    return p.reshape(*(p.shape if p.dim() == 2 else (1, -1)), *[1] * (x.dim() - 2))


class _InstanceMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        var, mean = var_mean(wide(x), _space(x))
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean, grad_var):
        x, mean = ctx.saved_tensors
        count = max(x.numel() // max(mean.numel(), 1), 1)
        centred = wide(x) - spread(mean, x)
        grad = torch.addcmul(spread(grad_mean / count, x), centred, spread(grad_var * 2 / count, x))
        return grad.to(x.dtype)


def instance_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each example and channel over space, both `(N, C)` in fp32.

    One pass over `x`; keeps `x` for backward. Of a map of tiles that share statistics they are the
    whole image's, without a gradient.
    """
    if is_tiled(x):
        return x.extents.moments(x)
    if isinstance(x, Padded):
        parts = [instance_moments(part) for part in crops(x)]
        mean, var = (torch.cat(moments) for moments in zip(*parts, strict=True))
        return mean, var
    if x.dim() == 2:
        return wide(x), torch.zeros_like(wide(x))
    if 0 in x.shape[2:]:  # an image without pixels
        return (sum_space(wide(x)),) * 2
    if recording():
        var, mean = torch.var_mean(wide(x), _space(x), correction=0)
        return mean, var
    return _InstanceMoments.apply(x)


def instance_means(x: Tensor) -> Tensor:
    """The mean alone, `(N, C)`; keeps nothing of activation size."""
    if isinstance(x, Padded):
        return torch.cat([instance_means(part) for part in crops(x)])
    return x.mean(_space(x), dtype=wide(x.new_empty(0)).dtype) if x.dim() > 2 else wide(x)


def pool(
    mean: Tensor, var: Tensor, dim: int, counts: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Pool the moments of parts along `dim`; zeros if there are no parts.

    Layer moments pool instance moments over channels, batch moments over examples.

    Args:
        counts: how many values each part has, if that differs; `dim` is then the first.
    """
    if counts is not None:
        shares = mean.new_tensor(counts) / max(sum(counts), 1)
        pooled = shares @ mean
        return pooled, shares @ (var + (mean - pooled).square())
    count = max(mean.shape[dim], 1)
    pooled = mean.sum(dim, keepdim=True) / count
    var = var.sum(dim) / count + (mean - pooled).square().sum(dim) / count
    return pooled.squeeze(dim), var


def group_moments(
    x: Tensor, num_groups: int, instance: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel's group in each example, both `(N, C)`.

    Args:
        instance: the instance moments `(N, C)` of `x`, if they are known already.
    """
    moments = (m.unflatten(1, (num_groups, -1)) for m in instance or instance_moments(x))
    members = x.shape[1] // num_groups
    mean, var = (m.repeat_interleave(members, 1) for m in pool(*moments, dim=2))
    return mean, var


def several_workers() -> bool:
    """Whether other processes share the batch."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _PoolWorkers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mean, var, count):
        mine = torch.cat([mean, var, count.view(1)])
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        means, variances, counts = torch.stack(parts).split([len(mean), len(var), 1], dim=1)
        total = counts.sum()
        shares = counts / total.clamp(min=1)
        pooled = (shares * means).sum(0)
        pooled_var = (shares * (variances + (means - pooled).square())).sum(0)
        ctx.save_for_backward(mean - pooled, count / total.clamp(min=1))
        ctx.mark_non_differentiable(total)
        return pooled, pooled_var, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean, grad_var, _):
        deviation, share = ctx.saved_tensors
        grads = torch.stack([grad_mean, grad_var])
        dist.all_reduce(grads)
        grad_mean, grad_var = grads
        return share * (grad_mean + 2 * grad_var * deviation), share * grad_var, None


def pool_workers(mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The moments `(C,)` of all workers' batches as if they were one, and its count per channel.

    A worker's weight is its number of elements `count` (0-d), which may be 0. Costs one small
    gather in forward and one small all-reduce in backward; every worker must run both. Deviations
    are taken from means, so that nothing cancels.
    """
    return _PoolWorkers.apply(mean, var, count.to(mean.dtype))


def _affine(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.addcmul(spread(shift, x), wide(x) - spread(centre, x), spread(scale, x))
    return y.to(x.dtype)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, centre, scale, shift):
        ctx.save_for_backward(x, centre, scale)
        ctx.dims = [p.dim() for p in (centre, scale, shift)]
        return _affine(x, centre, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, centre, scale = ctx.saved_tensors
        kept = wide(grad) * spread(scale, x)
        grad_shift = sum_space(wide(grad))
        grad_scale = sum_space(wide(grad) * (wide(x) - spread(centre, x)))
        grad_centre = -grad_shift * scale
        grads = (grad_centre, grad_scale, grad_shift)
        grads = [g.sum(0) if d == 1 else g for g, d in zip(grads, ctx.dims, strict=True)]
        return kept.to(x.dtype), *grads


def affine(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """`(x - centre) * scale + shift` with `(C,)` or `(N, C)` numbers, in the dtype of `x`.

    Keeps `x` for backward. A `shift` of `None` is 0.
    """
    shift = torch.zeros_like(scale) if shift is None else shift
    if isinstance(x, Padded):
        return like(affine(plain(x), centre, scale, shift), x)
    return (_affine if recording() else _Affine.apply)(x, centre, scale, shift)
