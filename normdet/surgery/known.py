"""Recognize a network's modules and functions: norm, convolution, activation, or something else.

Nothing here imports detectron2, torchvision or timm: their layers are recognized by name and by
attributes.
"""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..layers import AddAct, NormLayer

# The norms of detectron2, torchvision and timm that are neither torch's nor ours, by class name.
# All take `(N, C, H, W)`.
_NORMS = {
    "FrozenBatchNorm2d",
    "FrozenBatchNormAct2d",
    "GroupNormAct",
    "LayerNorm2d",
    "LayerNormAct2d",
    "NaiveSyncBatchNorm",
}
# detectron2's norm over the channels; torch has another norm of this name.
_CHANNEL_NORMS = {"detectron2.layers.batch_norm.LayerNorm"}

# Norms of a head that the levels of a pyramid share: statistics for each level, and one affine.
_PER_LEVEL = {"CycleBatchNormList", "PerLevelNorm"}
# Networks whose convolutions are normalized but, as in their papers, not activated.
_PYRAMIDS = {"FPN", "FeaturePyramidNetwork", "SimpleFeaturePyramid"}

# The activations that an option's own activation replaces.
REPLACED = ("ReLU", "TLU")
_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_OTHER_ACTIVATIONS = {
    getattr(F, name)
    for name in (
        "celu elu elu_ gelu glu hardsigmoid hardswish hardtanh leaky_relu leaky_relu_ logsigmoid "
        "mish prelu relu6 rrelu selu sigmoid silu softplus softsign tanh"
    ).split()
} | {torch.sigmoid, torch.tanh, "sigmoid", "sigmoid_", "tanh", "tanh_"}
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_", "__add__", "__iadd__"}
# Functions that read a tensor's shape and the like, but none of its values.
_QUESTIONS = {getattr, "size", "dim", "ndimension"}

_CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.Linear)
# The forward of these is a convolution, then a norm and an activation if it has them.
_PLAIN = {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear}

# Modules that pass their input on unchanged, at least in inference.
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_PASSING_NAMES = {"DropPath", "StochasticDepth", "DropBlock2d", "DropBlock3d"}
# Modules that keep the number of channels.
_KEEPING_NAMES = {"SE", "SEModule", "SqueezeExcite", "SqueezeExcitation", "EffectiveSEModule"}


def full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def is_norm(module: nn.Module) -> bool:
    """Whether it normalizes channels `(N, C, *S)`."""
    if is_per_level(module):
        return True
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, NormLayer)
    if isinstance(module, kinds):
        return hasattr(module, "eps")  # among ours a residual join and TLU have none
    if type(module).__name__ in _NORMS:
        return True
    return any(full_name(kind) in _CHANNEL_NORMS for kind in type(module).__mro__)


def is_per_level(module: nn.Module) -> bool:
    return type(module).__name__ in _PER_LEVEL


def is_pyramid(module: nn.Module) -> bool:
    return any(kind.__name__ in _PYRAMIDS for kind in type(module).__mro__)


def is_last_dim_norm(module: nn.Module) -> bool:
    """Whether it is a norm over the last dimensions, as in transformers."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) and not is_norm(module)


def channels_of_norm(norm: nn.Module) -> int:
    if is_per_level(norm):
        return channels_of_norm(norm[0])
    for name in ("num_features", "num_channels"):
        if hasattr(norm, name):
            return int(getattr(norm, name))
    return norm.weight.numel()


def norm_name(norm: nn.Module) -> str:
    """Its name in a report."""
    return getattr(norm, "option", None) or type(norm).__name__


def is_conv(module: nn.Module) -> bool:
    return isinstance(module, _CONVOLUTIONS)


def is_unit(module: nn.Module) -> bool:
    """Whether it is a convolution that calls a norm and an activation of its own (detectron2's)."""
    weighted = isinstance(getattr(module, "weight", None), nn.Parameter)
    return weighted and hasattr(module, "norm") and hasattr(module, "activation")


def is_plain(conv: nn.Module) -> bool:
    """Whether a weight method may take it over: its forward is torch's, or detectron2's."""
    if isinstance(conv, nn.ConvTranspose2d) and conv.groups > 1:
        return False  # no dimension of its weight is the output channels
    return type(conv) in _PLAIN or (is_unit(conv) and isinstance(conv, nn.Conv2d))


def dims_of(norm: nn.Module, conv: nn.Module | None) -> int | None:
    """The spatial dimensions of a norm's inputs; None if they are not known."""
    if isinstance(conv, nn.Linear):
        return 0
    for dims, kinds in {
        1: (nn.modules.conv.Conv1d, nn.ConvTranspose1d, nn.InstanceNorm1d),
        2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d),
        3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d),
    }.items():
        if isinstance(conv, kinds) or isinstance(norm, kinds):
            return dims
    if conv is not None or type(norm).__name__ in _NORMS or not torch_norm(norm):
        return 2  # deformable convolutions, and norms that take maps alone
    return None


def torch_norm(norm: nn.Module) -> bool:
    return type(norm).__module__.startswith("torch.nn.")


def activation_name(what: nn.Module | Callable | str | None) -> str | None:
    """`"ReLU"`, another activation's name, or None if it is no activation.

    Args:
        what: a module, a function, or a tensor method's name.
    """
    if isinstance(what, nn.Module):
        if type(what) is nn.ReLU:
            return "ReLU"
        if isinstance(what, AddAct):
            return None  # it adds before it activates
        place = type(what).__module__.rpartition(".")[2]
        return type(what).__name__ if place.startswith("activation") else None
    if what in _RELUS:
        return "ReLU"
    if what in _OTHER_ACTIVATIONS:
        return what if isinstance(what, str) else what.__name__
    return None


def is_addition(what: Callable | str) -> bool:
    return what in _ADDITIONS


def asks(what: Callable | str) -> bool:
    """Whether a call asks for a tensor's shape and the like."""
    return what in _QUESTIONS


def passes_on(module: nn.Module) -> bool:
    return isinstance(module, _PASSING) or type(module).__name__ in _PASSING_NAMES


def keeps_channels(module: nn.Module) -> bool:
    return passes_on(module) or type(module).__name__ in _KEEPING_NAMES
