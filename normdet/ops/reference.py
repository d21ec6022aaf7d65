"""Plain forms of every operation, from the formulas: fast forms are tested against them.

Autograd differentiates them, so they keep several buffers of the input's size for backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in the precision that statistics are computed in: fp64 stays, all else becomes fp32."""
    return x if x.dtype == torch.float64 else x.float()


def var_mean(z: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Biased variance and mean, as `torch.var_mean`.

    On a CPU that is a scalar loop: two vectorized passes take a sixth of its time and the memory
    of one more `z` meanwhile.
    """
    if z.device.type != "cpu":
        return torch.var_mean(z, dims, correction=0)
    mean = z.mean(dims, keepdim=True)
    centred = z - mean
    rest = centred.mean(dims)  # what rounding left of the mean
    return centred.square_().mean(dims) - rest.square(), mean.squeeze(dims) + rest


def per_channel(p: Tensor, x: Tensor) -> Tensor:
    """Shape a parameter `(C,)` to multiply `x` `(N, C, *S)`."""
    return p.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))


def act(x: Tensor, tau: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """ReLU, or TLU as `max(x, tau)`: on a tie the gradient goes to `tau`, and NaN passes."""
    if activation == "ReLU":
        return F.relu(x)
    if activation == "TLU":
        tau = per_channel(tau, x)
        return torch.where(x <= tau, tau, x)
    return x


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * per_channel(weight, x)
    return x if bias is None else x + per_channel(bias, x)


def over_groups(rows: Tensor, num_groups: int) -> Tensor:
    """Every channel's mean over its group, `(..., C)` to the same."""
    groups = rows.unflatten(-1, (num_groups, -1))
    return groups.mean(-1, keepdim=True).expand_as(groups).flatten(-2)


def finish(
    y: Tensor, dtype: torch.dtype, tau: Tensor | None, activation: str | None,
    residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """A norm's activation; with a residual the join of a block, which adds what is stored."""
    if residual is None:
        return act(y, tau, activation=activation).to(dtype)
    return add_act(y.to(dtype), residual, tau, activation=activation)


def frn_tlu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None = None,
    *,
    eps: float | Tensor,
    num_groups: int | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Filter Response Norm (arXiv:1911.09737): divide each channel by its root mean square.

    With groups the mean square is that of a group's channels.
    """
    z = wide(x)
    mean_square = z.square().flatten(2).mean(2) if x.dim() > 2 else z.square()
    if num_groups is not None:
        mean_square = over_groups(mean_square, num_groups)
    if isinstance(eps, Tensor):
        eps = eps.to(z.dtype).reshape(())
    scale = (mean_square + eps).rsqrt().reshape(*x.shape[:2], *[1] * (x.dim() - 2))
    return finish(affine(z * scale, weight, bias), x.dtype, tau, activation, residual)


def group_norm_act(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    tau: Tensor | None = None,
    *,
    eps: float | Tensor,
    activation: str | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Group Norm (arXiv:1803.08494) as torch computes it, then the activation."""
    z = wide(x)
    weight, bias = (None if p is None else p.to(z.dtype) for p in (weight, bias))
    if isinstance(eps, Tensor):  # torch's takes a number
        groups = z.reshape(len(z), num_groups, -1)
        var, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
        scale = (var + eps.to(z.dtype).reshape(())).rsqrt()
        y = affine(((groups - mean) * scale).reshape(z.shape), weight, bias)
    else:
        y = torch.group_norm(z, num_groups, weight, bias, eps)
    return finish(y, dtype or x.dtype, tau, activation, residual)


def frozen_bn_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    tau: Tensor | None = None,
    *,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A fixed affine, to the bit as detectron2's `FrozenBatchNorm2d` computes it.

    As there, an input that needs a gradient takes the path that keeps no copy of it.
    """
    if x.requires_grad:
        scale, shift = frozen_affine(weight, bias, running_mean, running_var, eps)
        y = affine(x, scale, shift)
    else:
        if x.dtype == torch.float64:  # batch_norm takes fp32 statistics with every dtype but this
            running_mean, running_var = running_mean.double(), running_var.double()
            weight, bias = (None if p is None else p.double() for p in (weight, bias))
        y = F.batch_norm(x, running_mean, running_var, weight, bias, training=False, eps=eps)
    return finish(y, y.dtype, tau, activation, residual)


def frozen_affine(
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The scale and shift `(C,)` that frozen batch statistics amount to."""
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else weight * scale
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return scale, shift


def add_act(
    x: Tensor, y: Tensor, tau: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """The residual join: add, then the activation."""
    return act(x + y, tau, activation=activation)


def standardize_weight(weight: Tensor, *, dialect: str, eps: float, out_dim: int = 0) -> Tensor:
    """Weight Standardization (arXiv:1903.10520) over all but the output channel.

    `"jhu"` (the authors, mmcv): unbiased deviation, eps added outside the root.
    `"timm"` (timm, BiT): biased variance, eps inside the root.
    """
    w = wide(weight).movedim(out_dim, 0)
    rows = w.flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    if dialect == "jhu":
        unbiased = min(1, rows.shape[1] - 1)  # one value has no unbiased deviation
        rows = rows / (rows.std(1, correction=unbiased, keepdim=True) + eps)
    else:
        variance = rows.square().mean(1, keepdim=True)
        rows = rows * (variance + eps).rsqrt()
    return rows.reshape(w.shape).movedim(0, out_dim).to(weight.dtype)
