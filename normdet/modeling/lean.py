"""`MODEL.NORMDET.RECOMPUTE`: keep no output of the norms for backward."""

import torch
from torch import nn

from ..ops.recompute import enter, leave


def lean(module: nn.Module, wanted: bool) -> nn.Module:
    """If `wanted`, let the module recompute its norms' outputs in backward.

    Gradients are the same to the last bit, and so are the state-dict keys. It has no effect under
    torch.compile, where torch's own partitioner decides what to keep, and under export.
    """
    if wanted:
        module.register_forward_pre_hook(_enter)
        module.register_forward_hook(_leave, always_call=True)
    return module


def _enter(module: nn.Module, inputs) -> None:
    if not torch.compiler.is_compiling():
        enter()


def _leave(module: nn.Module, inputs, output) -> None:
    if not torch.compiler.is_compiling():
        leave()
