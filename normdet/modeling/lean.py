"""`MODEL.NORMDET.RECOMPUTE`: a part of the detector that keeps no output of its norms."""

import torch
from torch import nn

from ..ops.recompute import enter, leave


def lean(module: nn.Module, wanted: bool) -> nn.Module:
    """Let the module, if `wanted`, recompute its norms' outputs in backward.

    The same gradients to the last bit; its state-dict keys stay as they are. While torch.compile
    or export traces nothing changes: torch's own partitioner decides there what to keep.
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
