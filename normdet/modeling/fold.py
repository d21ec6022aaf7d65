"""`MODEL.NORMDET.FOLD_FIXED`: fixed norms run inside the convolutions before them, in training too.

The convolution runs with the product of its weight and the norm's scale, "tune mode" in 2305.11624.
Gradients of the weight, and of the norm's affine where it trains, pass through that product.
"""

import copy

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..layers import NormLayer
from ..layers.reparametrized import with_affine
from ..ops.padded import Padded, cleaned, like, plain


class _ScaledConvolution(torch.autograd.Function):
    """A convolution by `weight * scale`; backward computes the product again."""

    @staticmethod
    def forward(ctx, x, weight, scale, bias, geometry):
        ctx.save_for_backward(x, weight, scale)
        ctx.geometry = geometry
        return F.conv2d(x, *with_affine(weight, None, scale, bias), *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_x, of_weight, of_scale, of_bias, _ = ctx.needs_input_grad
        product, bias = with_affine(weight, None, scale, scale)
        dx, dproduct, dbias = torch.ops.aten.convolution_backward(
            grad, x.to(grad.dtype), product.to(grad.dtype), bias.shape, stride, padding, dilation,
            False, [0, 0], groups, (of_x, of_weight or of_scale, of_bias),
        )  # fmt: skip
        dweight = dscale = None
        if of_weight:
            dweight = with_affine(dproduct.to(weight.dtype), None, scale, scale)[0]
        if of_scale:
            dscale = (dproduct * weight).sum((1, 2, 3))
        return dx, dweight, dscale, dbias, None


class FoldingConv2d(Conv2d):
    """detectron2's convolution `(N, C, H, W)`, which folds its norm into its weight as it runs.

    It does so while the norm is a fixed affine and no hook watches it. The norm stays in its place,
    with its keys. For backward it keeps its input and output; a norm by itself whose affine
    trains keeps the convolution's output too.
    """

    def forward(self, x: Tensor) -> Tensor:
        affine = None if _watched(self.norm) else self.norm.fixed_affine()
        if affine is None:
            return super().forward(x)
        x = self._convolved(x, *affine)
        # No hook or other module needs the convolution's own output.
        x = F.relu_(x) if self.norm.activation == "ReLU" else self.norm.activate(x)
        return x if self.activation is None else self.activation(x)

    def _convolved(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if isinstance(x, Padded):
            x = cleaned(x) if max(self.kernel_size) > 1 else x
            return like(self._convolved(plain(x), scale, shift), x)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._conv_forward(x, *with_affine(self.weight, self.bias, scale, shift))
        shift = shift if self.bias is None else shift + self.bias * scale
        geometry = self.stride, self.padding, self.dilation, self.groups
        return _ScaledConvolution.apply(x, self.weight, scale, shift, geometry)

    def __prepare_scriptable__(self) -> Conv2d:
        plain = copy.copy(self)
        plain.__class__ = Conv2d
        return plain


def fold_fixed(module: nn.Module, wanted: bool) -> nn.Module:
    """If `wanted`, let the convolutions below the module fold norms that are fixed affines.

    Those are FrozenBN and AffineBN always, and BN, SyncBN, BRN and MABN in test mode. Convolutions
    under a weight method stay as they are.
    """
    for conv in module.modules() if wanted else ():
        known = type(conv) is Conv2d and conv.padding_mode == "zeros"
        if known and isinstance(conv.norm, NormLayer) and conv.norm.tests_as_bn:
            conv.__class__ = FoldingConv2d
    return module


def _watched(norm: nn.Module | None) -> bool:
    """Whether a hook watches it, or it is not a norm of ours any more."""
    return not isinstance(norm, NormLayer) or bool(norm._forward_hooks or norm._forward_pre_hooks)
