"""Fixup (Zhang et al., 1901.09321): an initialization for residual blocks without norms."""

import torch
from torch import nn

from ..options import NormOption

_BRANCH = ("conv1", "conv2", "conv3")


@torch.no_grad()
def fixup_block(block: nn.Module, option: NormOption, depth: int) -> None:
    """Give a residual block without norms the start and the scalars of Fixup, in place.

    The branch's last convolution starts at zero, so that the block starts as its shortcut; the `m`
    others shrink by `L ** (-1 / (2m))`, `L` being the number of blocks of the network (section 3,
    rules 1 to 3, where `m` counts the last one too). The shortcut's convolution keeps its start.

    Args:
        block: one of ours, its convolutions started as detectron2's.
        depth: the network's. `L` follows from it: `depth - 2` convolutions are in branches.
    """
    *others, last = (child for name, child in block.named_children() if name in _BRANCH)
    blocks = (depth - 2) // (len(others) + 1)
    block.entry = option.build_scalars(block.in_channels, shift=False, offset=True)
    for conv in others:
        conv.weight *= blocks ** (-1 / (2 * len(others)))
        conv.norm = option.build_scalars(conv.out_channels, activate=True, offset=True)
        conv.activation = None
    last.weight.zero_()
    last.norm = option.build_scalars(last.out_channels, scale=True)


def fixup_stem(stem: nn.Module, option: NormOption) -> None:
    """Give the stem's activation its bias, in place."""
    stem.conv1.norm = option.build_scalars(stem.conv1.out_channels, activate=True)
    stem.conv1.activation = None
