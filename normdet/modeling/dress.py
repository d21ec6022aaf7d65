"""Give a freshly built detectron2 layer an option's weight, norm and activation.

Every part of ours is detectron2's own, built without norms and then dressed. So its structure,
initialization, random numbers and state-dict keys are detectron2's.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ..keys import put
from ..layers import AddAct, NormLayer
from ..layers.reparametrized import ReparametrizedConv2d
from ..options import NormOption


def without_norms(cfg: CfgNode, *keys: str) -> CfgNode:
    """A copy of the config whose NORM keys are empty, for a stock builder."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in keys:
        put(cfg, key, "")
    return cfg


def replace_child(parent: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` where `old` stands among the children of `parent`; returns `new`."""
    if new is not old:
        name = next(name for name, child in parent.named_children() if child is old)
        setattr(parent, name, new)
    return new


def dress_conv(
    parent: nn.Module, conv: nn.Module, option: NormOption, *, activate: bool, levels: int = 1
) -> nn.Module:
    """Normalize one of detectron2's convolutions (with `norm` and `activation` attributes).

    The bias is removed, since the norm has a beta. Without a norm the layer keeps its bias and its
    activation.

    Args:
        parent: the module that holds `conv` and will hold what replaces it.
        activate: the option's activation follows, fused with the norm.
        levels: how many feature maps the convolution is applied to in turn.

    Returns:
        The convolution now in place.
    """
    if not option:
        if activate and conv.activation is None:
            conv.activation = option.build_activation(conv.out_channels)
        return conv
    conv.bias = None
    conv.norm = option.build_norm(conv.out_channels, activate=activate, levels=levels)
    conv.activation = None
    return replace_child(parent, conv, option.build_weight(conv))


def dress_pair(
    parent: nn.Sequential,
    layer: str,
    activation: str,
    option: NormOption,
    channels: int,
    *,
    dims: int = 2,
) -> None:
    """Normalize a layer and the activation after it, which is a child module of its own.

    `fc1, fc_relu1` become `fc1, fc_norm1`, in the same place of the sequence.
    """
    if not option:
        return
    children = list(parent.named_children())
    for name, _ in children:
        delattr(parent, name)
    for name, child in children:
        if name == layer:
            child.bias = None
            child = option.build_weight(child)
        elif name == activation:
            name = name.replace("relu", "norm")
            child = option.build_norm(channels, activate=True, dims=dims)
        parent.add_module(name, child)


def convolve_and_join(conv: nn.Module, x: Tensor, residual: Tensor, join: nn.Module) -> Tensor:
    """`join(conv(x), residual)`, with the convolution's norm and the join in one pass if possible.

    Modules with hooks are called one by one, and so are all modules during tracing.
    """
    norm = getattr(conv, "norm", None)
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (conv, join))
    fuses = (
        (type(conv) is Conv2d or isinstance(conv, ReparametrizedConv2d))
        and isinstance(norm, NormLayer)
        and norm.fuses_join()
        and isinstance(join, AddAct)
        and conv.activation is None
        and not (hooked or torch.jit.is_tracing())
    )
    if not fuses:
        return join(conv(x), residual)
    weight = conv.weight if type(conv) is Conv2d else conv.used_weight(x)
    return norm.joined(conv._conv_forward(x, weight, conv.bias), residual, join)
