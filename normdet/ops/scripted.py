"""The forms that TorchScript compiles: `torch.jit.script` reads their code.

They are plain torch with positional arguments and types that TorchScript knows, hence `Optional`.
Other routes out of Python (tracing, `torch.export`) run :mod:`normdet.ops.reference`.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def act(x: Tensor, tau: Optional[Tensor]) -> Tensor:
    """TLU; without a `tau`, `x` itself."""
    if tau is None:
        return x
    shape = [1, -1] + [1] * (x.dim() - 2)
    return torch.maximum(x, tau.to(x.dtype).reshape(shape))


def activate(x: Tensor, tau: Optional[Tensor], activation: Optional[str]) -> Tensor:
    """None, ReLU or TLU."""
    if activation is None:
        return x
    if activation == "ReLU":
        return F.relu(x)
    return act(x, tau)


def frn_tlu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    tau: Optional[Tensor],
    eps: float,
    learned_eps: Optional[Tensor],
    groups: Optional[int],
    activation: Optional[str],
) -> Tensor:
    """See :func:`normdet.ops.frn_tlu`."""
    z = x if x.dtype == torch.float64 else x.float()
    shape = [1, -1] + [1] * (x.dim() - 2)
    square = z.square()
    if x.dim() > 2:
        square = square.flatten(2).mean(2)
    if groups is not None:
        square = square.reshape(x.size(0), groups, -1).mean(2)
        square = square.repeat_interleave(x.size(1) // groups, dim=1)
    square = square.reshape([x.size(0), -1] + [1] * (x.dim() - 2)) + eps
    if learned_eps is not None:
        square = square + learned_eps.abs().to(z.dtype)
    y = z * square.rsqrt() * weight.to(z.dtype).reshape(shape) + bias.to(z.dtype).reshape(shape)
    return activate(y, tau, activation).to(x.dtype)


def group_norm_act(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    tau: Optional[Tensor],
    eps: float,
    learned_eps: Optional[Tensor],
    activation: Optional[str],
) -> Tensor:
    """See :func:`normdet.ops.group_norm_act`."""
    z = x if x.dtype == torch.float64 else x.float()
    weight, bias = weight.to(z.dtype), bias.to(z.dtype)
    if learned_eps is None:
        y = torch.group_norm(z, groups, weight, bias, eps)
    else:
        shape = [1, -1] + [1] * (x.dim() - 2)
        rows = z.reshape(x.size(0), groups, -1)
        var, mean = torch.var_mean(rows, dim=2, unbiased=False, keepdim=True)
        scale = (var + eps + learned_eps.abs().to(z.dtype)).rsqrt()
        y = ((rows - mean) * scale).reshape(z.shape)
        y = y * weight.reshape(shape) + bias.reshape(shape)
    return activate(y, tau, activation).to(x.dtype)


def standardize_weight(weight: Tensor, dialect: str) -> Tensor:
    """See :func:`normdet.ops.standardize_weight`."""
    rows = weight.flatten(1)
    rows = rows if rows.dtype == torch.float64 else rows.float()
    rows = rows - rows.mean(1, keepdim=True)
    if dialect == "jhu":
        rows = rows / (rows.std(1, keepdim=True) + 1e-5)
    else:
        rows = rows * (rows.square().mean(1, keepdim=True) + 1e-6).rsqrt()
    return rows.reshape(weight.shape).to(weight.dtype)
