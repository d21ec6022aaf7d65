"""Lean forms in plain torch. They are slower than kernels, but keep no more for backward.

They run on every device. The kernels use the same formulas: for each channel of each example
`y = max((x - mu) * a + b, t)`, whose gradient is `k * a + (x - mu) * p + q` with `k = dy` where
`y > t` and 0 elsewhere; see `csrc/ops.cpp`.
"""

import torch
from torch import Tensor

from normdet.ops.layout import are_rows, memory_format
from normdet.ops.reference import var_mean, wide


def norm_forward(
    x, residual, weight, bias, tau, learned_eps, kind, groups, eps, activation, dtype=None,
    extents=None,
):  # fmt: skip
    """`y` shaped as `x`, and `mean` (None for "rms") and `rstd`, both `(N, groups)`.

    A residual is added before the activation. With `extents` `(N, 2)`, the height and width of
    each image in `x`, nothing else counts, and `y` is zero there.
    """
    if len(x) > 1 and are_rows(groups, residual, weight, bias, tau, learned_eps, extents):
        rows = x.reshape(1, len(x), -1)
        y, mean, rstd = norm_forward(
            rows, None, None, None, None, None, kind, len(x), eps, activation, dtype
        )
        return _finish(y, x, y.dtype), None if mean is None else mean.T, rstd.T
    z = _with_space(wide(x))
    inside = None if extents is None else _inside(z, extents)
    eps = eps if learned_eps is None else learned_eps
    mean, rstd = _statistics(z, kind, groups, eps, inside)
    y = _affine(_centre(z, mean), _scale(rstd, weight, z), bias)
    if residual is not None:
        y = y + wide(residual).reshape(y.shape)
    y = _within(_activate(y, tau, activation), inside)
    return _finish(y, x, dtype or x.dtype), mean, rstd


def norm_backward(
    dy, x, out, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient,
    extents=None,
):  # fmt: skip
    """Gradients of `x` and of the residual, of weight, bias and tau `(3, C)`, and of eps.

    The gradient of an input that was not given is None. With a residual, the output `out` shows
    which elements were clamped.
    """
    if len(x) > 1 and not eps_gradient and are_rows(groups, out, weight, bias, tau, extents):
        dx, *_ = norm_backward(
            dy.reshape(1, len(x), -1), x.reshape(1, len(x), -1), None,
            None if mean is None else mean.T, rstd.T, None, None, None, kind, len(x), eps,
            activation, False,
        )  # fmt: skip
        return _finish(dx, x, x.dtype), None, None, None
    z, grad = _with_space(wide(x)), _with_space(wide(dy))
    inside = None if extents is None else _inside(z, extents)
    z, grad = _within(z, inside), _within(grad, inside)
    space = list(range(2, z.dim()))
    centred = _centre(z, mean)
    scale = _scale(rstd, weight, z)
    if activation is None:
        kept, st = grad, grad.new_zeros(grad.shape[:2])
    else:
        t = _row(tau, z) if activation == "TLU" else 0.0
        if out is None:
            clamped = _affine(centred, scale, bias) <= t
        else:
            clamped = _clamped(out, tau, activation)
        kept = grad.masked_fill(clamped, 0)
        st = (grad - kept).sum(space)
    s0, s1 = kept.sum(space), (kept * centred).sum(space)

    n, c = z.shape[:2]
    count = c // groups * _pixels(z, inside) if n else 1
    w = torch.ones_like(s0) if weight is None else weight.to(s0.dtype).expand(n, c)
    g0, g1 = ((w * s).view(n, groups, c // groups).sum(2) for s in (s0, s1))
    p = -g1 * rstd**3 / count
    if kind == "deviation":
        deviation = 1 / rstd - eps
        p = -g1 * rstd.square() / ((count - 1) * deviation)
        p = p.masked_fill(deviation <= 0, 0)
    dx = torch.addcmul(kept * scale, centred, _spread(p, z))
    if mean is not None:
        dx += _spread(-g0 * rstd / count, z)
    dx = _within(dx, inside)

    per_row = rstd.repeat_interleave(c // groups, 1)
    deps = (-0.5 * (w * s1 * per_row**3).sum()).reshape(1) if eps_gradient else None
    by_channel = None
    if eps_gradient or any(parameter is not None for parameter in (weight, bias, tau)):
        by_channel = torch.stack([s1 * per_row, s0, st]).sum(1)
    dsum = None if out is None else _finish(kept, x, dy.dtype)
    return _finish(dx, x, x.dtype), dsum, by_channel, deps


def point_forward(x, residual, scale, shift, tau, activation):
    """`activation(x * scale + shift + residual)`; any of them may be missing."""
    z = _with_space(wide(x))
    if scale is not None:
        z = _affine(z, _row(scale, x), shift)
    if residual is not None:
        z = z + wide(residual).reshape(z.shape)
    return _finish(_activate(z, tau, activation), x, x.dtype)


def point_backward(dy, y, scale, joined, tau):
    """Gradients of the input, of the residual and of `tau`, from the activated output `y` alone.

    Without a scale, input and residual have the same gradient, which is returned once. The gradient
    of an input that was not given is None.
    """
    grad = _with_space(dy)
    kept = grad.masked_fill(_clamped(y, tau, "ReLU" if tau is None else "TLU"), 0)
    dtau = None if tau is None else wide(grad - kept).sum([0, *range(2, grad.dim())])
    if scale is None:
        return _finish(kept, y, y.dtype), None, dtau
    dx = _finish(kept * _row(scale, grad), y, y.dtype)
    return dx, _finish(kept, y, y.dtype) if joined else None, dtau


def _finish(z: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`z` in the shape and layout of `x`."""
    return z.to(dtype).reshape(x.shape).contiguous(memory_format=memory_format(x))


def _clamped(out: Tensor, tau: Tensor | None, activation: str) -> Tensor:
    """Which elements of an output are at the threshold, rounded to the output's dtype."""
    out = _with_space(out)
    return out <= (_row(tau.to(out.dtype), out) if activation == "TLU" else 0.0)


def _with_space(x: Tensor) -> Tensor:
    return x.unsqueeze(2) if x.dim() == 2 else x


def _row(p: Tensor, x: Tensor) -> Tensor:
    return p.reshape(1, -1, *[1] * (max(x.dim(), 3) - 2))


def _spread(stat: Tensor, x: Tensor) -> Tensor:
    """A statistic `(N, G)` to act on `x` `(N, C, *S)`."""
    stat = stat.repeat_interleave(x.shape[1] // stat.shape[1], 1)
    return stat.reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def _inside(z: Tensor, extents: Tensor) -> Tensor:
    """Which places of `z` `(N, C, H, W)` are image, `(N, 1, H, W)`."""
    height, width = extents.to(z.device)[:, :, None].unbind(1)
    rows, columns = (torch.arange(length, device=z.device) for length in z.shape[2:])
    return ((rows < height)[:, :, None] & (columns < width)[:, None])[:, None]


def _within(z: Tensor, inside: Tensor | None) -> Tensor:
    return z if inside is None else z.masked_fill(~inside, 0)


def _pixels(z: Tensor, inside: Tensor | None) -> int | Tensor:
    """How many there are in a channel of each example, `(N, 1)` if that differs."""
    if inside is None:
        return z[0, 0].numel()
    return inside.flatten(1).sum(1, keepdim=True).clamp(min=1)


def _moments(z: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """Variance and mean of each channel, `(N, C)`."""
    space = list(range(2, z.dim()))
    if inside is None:
        return var_mean(z, space)
    count = _pixels(z, inside)
    mean = _within(z, inside).sum(space) / count
    return _within(z - _spread(mean, z), inside).square().sum(space) / count, mean


def _statistics(
    z: Tensor, kind: str, groups: int, eps, inside: Tensor | None = None
) -> tuple[Tensor | None, Tensor]:
    space = list(range(2, z.dim()))
    shape = (len(z), groups, z.shape[1] // groups)
    if kind == "rms":
        square = z.square()
        if inside is None:
            square = square.mean(space)
        else:
            square = _within(square, inside).sum(space) / _pixels(z, inside)
        return None, (square.view(shape).mean(2) + eps).rsqrt()
    # Reduce by channel first, then over a group's channels, so that no view needs a copy.
    var, mean = _moments(z, inside)
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
