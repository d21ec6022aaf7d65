"""Lean forms in plain torch: slower than a kernel, but they keep no more for backward.

They serve every device, and they are the algebra that the kernels follow: for each channel of each
example `y = max((x - mu) * a + b, t)`, whose gradient is `k * a + (x - mu) * p + q` with `k = dy`
where `y > t` and 0 elsewhere; see `csrc/ops.cpp`.
"""

import torch
from torch import Tensor

from normdet.ops.layout import memory_format
from normdet.ops.reference import wide


def norm_forward(x, weight, bias, tau, learned_eps, kind, groups, eps, activation):
    """`y` shaped as `x`, and `mean` (empty for "rms") and `rstd`, both `(N, groups)`."""
    z = _with_space(wide(x))
    mean, rstd = _statistics(z, kind, groups, eps if learned_eps is None else learned_eps)
    y = _affine(_centre(z, mean), _scale(rstd, weight, z), bias)
    if activation is not None:
        t = _row(tau, z) if activation == "TLU" else 0.0
        y = torch.where(y <= t, t, y)
    y = y.to(x.dtype).reshape(x.shape).contiguous(memory_format=memory_format(x))
    return y, z.new_empty(0) if mean is None else mean, rstd


def norm_backward(
    dy, x, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient
):
    """Gradients of `x`, of weight, bias and tau `(3, C)`, and of eps (empty if not asked for)."""
    z, grad = _with_space(wide(x)), _with_space(wide(dy))
    space = list(range(2, z.dim()))
    centred = _centre(z, None if kind == "rms" else mean)
    scale = _scale(rstd, weight, z)
    if activation is None:
        kept, st = grad, grad.new_zeros(grad.shape[:2])
    else:
        t = _row(tau, z) if activation == "TLU" else 0.0
        clamped = _affine(centred, scale, bias) <= t
        kept = grad.masked_fill(clamped, 0)
        st = (grad - kept).sum(space)
    s0, s1 = kept.sum(space), (kept * centred).sum(space)

    n, c = z.shape[:2]
    count = c // groups * z[0, 0].numel() if n else 1
    w = torch.ones_like(s0) if weight is None else weight.to(s0.dtype).expand(n, c)
    g0, g1 = ((w * s).view(n, groups, c // groups).sum(2) for s in (s0, s1))
    p = -g1 * rstd**3 / count
    if kind == "deviation":
        deviation = 1 / rstd - eps
        p = -g1 * rstd.square() / ((count - 1) * deviation)
        p = p.masked_fill(deviation <= 0, 0)
    dx = torch.addcmul(kept * scale, centred, _spread(p, z))
    if kind != "rms":
        dx += _spread(-g0 * rstd / count, z)

    per_row = rstd.repeat_interleave(c // groups, 1)
    deps = (-0.5 * (w * s1 * per_row**3).sum()).reshape(1) if eps_gradient else s1.new_empty(0)
    dx = dx.to(x.dtype).reshape(x.shape).contiguous(memory_format=memory_format(x))
    return dx, torch.stack([s1 * per_row, s0, st]).sum(1), deps


def affine_forward(x, scale, shift, tau, activation):
    z = _affine(_with_space(wide(x)), _row(scale, x), shift)
    return (
        _activate(z, tau, activation)
        .to(x.dtype)
        .reshape(x.shape)
        .contiguous(memory_format=memory_format(x))
    )


def add_forward(x, y, tau, activation):
    z = _activate(_with_space(wide(x) + wide(y)), tau, activation)
    return z.to(x.dtype).reshape(x.shape).contiguous(memory_format=memory_format(x))


def point_backward(dy, y, scale, tau, activation):
    """Gradients of the input and of `tau` of a pointwise form, from its output `y` alone."""
    grad, out = _with_space(dy), _with_space(y)
    t = _row(tau.to(y.dtype), out) if activation == "TLU" else 0.0
    kept = grad.masked_fill(out <= t, 0)
    dtau = wide(grad - kept).sum([0, *range(2, out.dim())])
    if scale is not None:
        kept = (kept * _row(scale, out)).to(dy.dtype)
    return kept.reshape(y.shape).contiguous(memory_format=memory_format(y)), dtau


def _with_space(x: Tensor) -> Tensor:
    return x.unsqueeze(2) if x.dim() == 2 else x


def _row(p: Tensor, x: Tensor) -> Tensor:
    return p.reshape(1, -1, *[1] * (max(x.dim(), 3) - 2))


def _spread(stat: Tensor, x: Tensor) -> Tensor:
    """A statistic `(N, G)` to act on `x` `(N, C, *S)`."""
    stat = stat.repeat_interleave(x.shape[1] // stat.shape[1], 1)
    return stat.reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def _statistics(z: Tensor, kind: str, groups: int, eps) -> tuple[Tensor | None, Tensor]:
    space = list(range(2, z.dim()))
    if kind == "rms":
        return None, (z.square().mean(space) + eps).rsqrt()
    # By channel first, then over the channels of a group: no view of a group needs a copy.
    var, mean = torch.var_mean(z, space, correction=0)
    shape = (len(z), groups, z.shape[1] // groups)
    mean = mean.view(shape)
    between, mean = torch.var_mean(mean, 2, correction=0)
    var = var.view(shape).mean(2) + between
    if kind == "deviation":
        count = z.shape[1] // groups * z[0, 0].numel()
        return mean, 1 / ((var * (count / (count - 1))).sqrt() + eps)
    return mean, (var + eps).rsqrt()


def _centre(z: Tensor, mean: Tensor | None) -> Tensor:
    return z if mean is None else z - _spread(mean, z)


def _scale(rstd: Tensor, weight: Tensor | None, z: Tensor) -> Tensor:
    scale = _spread(rstd, z)
    return scale if weight is None else scale * _row(weight, z)


def _affine(z: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return z * scale if bias is None else torch.addcmul(_row(bias, z).to(z.dtype), z, scale)


def _activate(z: Tensor, tau: Tensor | None, activation: str | None) -> Tensor:
    if activation is None:
        return z
    t = _row(tau, z) if activation == "TLU" else 0.0
    return torch.where(z <= t, t, z)
