"""EvoNorm-B0 and -S0 (Liu et al., 2004.02967): norm and activation found as one."""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..ops import check_groups, recompute, recording
from ..ops.padded import Padded, apart, like, plain
from ..ops.reference import affine, over_groups, wide
from ..ops.tiles import is_tiled
from .base import NormLayer
from .batch_statistics import RunningNorm
from .moments import group_moments, instance_moments, spread, sum_channels, sum_space


class _Lean(torch.autograd.Function):
    """`run(*inputs)`, which keeps only its inputs and runs again in backward."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run = run
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        wanted = ctx.needs_input_grad[1:]
        inputs = [
            t if t is None else t.detach().requires_grad_(wants)
            for t, wants in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            y = ctx.run(*inputs)
        trained = [t for t, wants in zip(inputs, wanted, strict=True) if wants]
        grads = iter(torch.autograd.grad(y, trained, grad, allow_unused=True))
        return None, *(next(grads) if wants else None for wants in wanted)


def _lean(run, *inputs):
    """`run(*inputs)`, lean unless a graph of standard operators is being recorded."""
    recorded = recording() or torch.compiler.is_compiling()
    return run(*inputs) if recorded else _Lean.apply(run, *inputs)


class _EvoNormS0(torch.autograd.Function):
    """S0 from its formula; keeps `x` and the moments `(N, C)`."""

    @staticmethod
    def forward(ctx, x, v, weight, bias, num_groups, eps):
        mean, var = group_moments(x, num_groups)
        rstd = (var + eps).rsqrt()
        ctx.save_for_backward(x, v, weight, bias, mean, rstd)
        ctx.num_groups = num_groups
        return _scaled(x, v, weight, bias, rstd)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, v, weight, _, mean, rstd = ctx.saved_tensors
        grad, z = wide(grad), wide(x)
        z_grad = grad * spread(rstd * weight, x)
        if v is None:
            activated, dv = z, None
        else:
            gate = (z * spread(v, x)).sigmoid_()
            activated = z * gate
            bent = activated * (1 - gate)  # x * gate', per unit of v * x
            dv = sum_channels(z_grad * bent * z)
            z_grad = z_grad.mul_(gate.addcmul_(spread(v, x), bent))
        of_scale, of_shift = sum_space(grad * activated), sum_space(grad)
        pixels = max(math.prod(x.shape[2:]), 1)
        along = over_groups(of_scale * weight, ctx.num_groups) * (-(rstd**3) / pixels)
        dx = z_grad.addcmul_(z - spread(mean, x), spread(along, x)).to(x.dtype)
        return dx, dv, (of_scale * rstd).sum(0), of_shift.sum(0), None, None


def _scaled(x: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, rstd: Tensor) -> Tensor:
    """`x * sigmoid(v * x) * rstd * weight + bias`; without `v` no sigmoid."""
    z = wide(x)
    activated = z if v is None else z * (z * spread(v, x)).sigmoid()
    return torch.addcmul(spread(bias, x), activated, spread(rstd * weight, x)).to(x.dtype)


def _scaled_again(node) -> Tensor:
    """The output from what its node keeps (:mod:`normdet.ops.recompute`)."""
    *tensors, _, rstd = node.saved_tensors
    with torch.no_grad():
        return _scaled(*tensors, rstd)


class EvoNormS0(NormLayer):
    """`x * sigmoid(v * x) / sqrt(var_G(x) + eps) * gamma + beta` (2004.02967, table 2, S0).

    `G` is space and a group's channels of one example. Where a layer has no activation the sigmoid
    is left out, and what remains is GN without its mean in the numerator.

    Keeps `x` and two floats per `(n, c)` for backward. It has no kernel: in plain torch on a CPU it
    takes some 20 times what GN+ReLU takes, and 2 to 4 times what torch's BN and ReLU take.

    Args:
        num_groups: groups `G`; must divide `num_features`.
        num_features: channels `C`.
        eps: added to the variance.
        activation: `"EvoNorm"` for its own, or `None`.

    Raises:
        NormdetError: if `num_groups` does not divide `num_features`, or on unfit input.
    """

    def __init__(
        self, num_groups: int, num_features: int, eps: float = 1e-5, activation: str | None = None
    ):
        super().__init__()
        self.num_groups = check_groups(num_groups, num_features)
        self.num_features, self.eps = num_features, eps
        self._init_affine(num_features)
        self._init_activation(num_features, None)
        self.activation = activation
        self.register_parameter("v", nn.Parameter(torch.ones(num_features)) if activation else None)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if is_tiled(x):
            return like(self._by_moments(x), x)
        if isinstance(x, Padded):
            return apart(self.forward, x)
        if recording() or torch.compiler.is_compiling():
            return self._by_moments(x)
        y = _EvoNormS0.apply(x, self.v, self.weight, self.bias, self.num_groups, self.eps)
        return recompute.made(y, _scaled_again)

    def _by_moments(self, x: Tensor) -> Tensor:
        """From standard operators, and the moments of whatever `x` is a map of."""
        _, var = group_moments(x, self.num_groups)
        return _scaled(plain(x), self.v, self.weight, self.bias, (var + self.eps).rsqrt())

    def activate(self, x: Tensor) -> Tensor:
        """`x * sigmoid(v * x)`."""
        if self.v is None:
            return x
        z = wide(x)
        return (z * (z * spread(self.v, x)).sigmoid()).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {super().extra_repr()}"


class EvoNormB0(RunningNorm):
    """`x / max(sqrt(var_B(x) + eps), v * x + sqrt(var_I(x) + eps)) * gamma + beta` (B0).

    `var_B` is the batch's variance, its running average at test time; `var_I` that of one example
    and channel over space (2004.02967, table 2). Where a layer has no activation the second term
    is left out, and what remains is BN without its mean in the numerator.

    State-dict keys are those of BN, and `v`; the running mean is learned and not used. Keeps `x`
    for backward and computes the rest anew.

    Args:
        activation: `"EvoNorm"` for its own, or `None`.
        kwargs: see :class:`RunningNorm`.
    """

    by_example = True

    def __init__(self, num_features: int, *, activation: str | None = None, **kwargs):
        super().__init__(num_features, activation=None, **kwargs)
        self.activation = activation
        self.register_parameter("v", nn.Parameter(torch.ones(num_features)) if activation else None)

    def activate_normalized(self, y: Tensor) -> Tensor:
        return y

    def expected_moments(self, mean: Tensor, square: Tensor) -> tuple:
        return NormLayer.expected_moments(self, mean, square)  # refuses: no affine of x

    def normalize(self, x: Tensor) -> Tensor:
        instance = instance_moments(x)
        var = self.batch_moments(x, instance)[1]
        return _lean(self._normalize, plain(x), instance[1], var, self.v, self.weight, self.bias)

    def _normalize(self, x, own_var, var, v, weight, bias) -> Tensor:
        x_hat = self._divided(wide(x), (var + self.eps).sqrt(), (own_var + self.eps).sqrt(), v)
        return affine(x_hat, weight, bias).to(x.dtype)

    def _divided(self, x: Tensor, deviation: Tensor, own: Tensor, v: Tensor | None) -> Tensor:
        by = spread(deviation, x)
        if self.activation is not None:
            by = torch.maximum(by, x * spread(v, x) + spread(own, x))
        return x / by

    def activate(self, x: Tensor) -> Tensor:
        """Its effect on an input of variance 1: `x / max(1, v * x + 1)`."""
        one = torch.ones_like(self.running_var)
        return self._divided(wide(x), one, one, self.v).to(x.dtype)
