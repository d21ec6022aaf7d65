"""The backend "triton", which is imported at first use, so that normdet itself needs no Triton."""

import functools
import logging

import torch

from normdet.ops.triton_norm import norm_backward, norm_forward
from normdet.ops.triton_point import point_backward, point_forward

__all__ = ["norm_backward", "norm_forward", "point_backward", "point_forward", "works"]

_log = logging.getLogger(__name__)


@functools.cache
def works(device: int) -> bool:
    """Whether a kernel compiles and runs on a CUDA device; warns once if it does not.

    Triton needs a C compiler and Python's headers at its first launch, which images made to run a
    model often lack.
    """
    try:
        x = torch.ones(1, 1, 1, 8, device=torch.device("cuda", device))
        return bool((point_forward(x, x, None, None, None, None) == 2).all())
    except Exception as error:  # Triton's failures are of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        _log.warning("no Triton kernels on cuda:%d, using plain torch: %s", device, reason)
        return False
