"""Deformable convolution by torchvision's operator, for detectron2 without its compiled part."""

import importlib.util

import torch
from detectron2.modeling.backbone import resnet
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """detectron2's `DeformConv` (1703.06211): same arguments, same keys, same start.

    Args:
        deformable_groups: groups of input channels with offsets of their own.
        norm: module applied to the output, or `None`.
        activation: called last, or `None`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation=None,
    ):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = (kernel_size, kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.deformable_groups = groups, deformable_groups
        self.norm, self.activation = norm, activation
        size = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` `(N, C, H, W)`; `offset` `(N, 2 * groups * k * k, H', W')`; `mask` half of that."""
        x = deform_conv2d(
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask
        )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        )


class ModulatedDeformConv(DeformConv):
    """detectron2's `ModulatedDeformConv` (1811.11168), which weighs each sample by a mask."""


def use_torchvision_where_detectron2_has_none() -> None:
    """Give detectron2's ResNet these classes if it was installed without `_C`. Idempotent."""
    if importlib.util.find_spec("detectron2._C") is None:
        resnet.DeformConv, resnet.ModulatedDeformConv = DeformConv, ModulatedDeformConv
