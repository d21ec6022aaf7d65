"""The two layouts that the fast forms work in, and the part of a map that is image."""

from collections.abc import Sequence

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format(x: Tensor) -> torch.memory_format:
    """The output's layout for an input `(N, C, *S)`: channels last if `x` is, even a slice."""
    last = x.dim() in _CHANNELS_LAST and not x.is_contiguous() and x.stride(1) == 1
    return _CHANNELS_LAST[x.dim()] if last and x.shape[1] > 1 else torch.contiguous_format


def are_rows(groups: int, *given: object) -> bool:
    """Whether examples may be taken for the channels `(1, N, C * S)` of one.

    They are of one group each, and nothing was given that tells their channels apart, as with a
    weight to standardize. Few long rows are normalized faster than many short ones.
    """
    return groups == 1 and all(x is None for x in given)


def fill_outside(x: Tensor, sizes: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`x` `(N, C, H, W)` itself, `value` written outside each image's height and width."""
    for image, (height, width) in zip(x, sizes, strict=True):
        image[:, height:] = value
        image[:, :height, width:] = value
    return x
