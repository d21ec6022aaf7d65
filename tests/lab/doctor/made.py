"""Images as tensors, and their values, for tests with known answers."""

import torch
from torch import Tensor


def images(count: int = 8, channels: int = 3) -> list[Tensor]:
    """Images of several sizes, with different brightness and contrast."""
    generator = torch.Generator().manual_seed(0)
    ret = []
    for index in range(count):
        x = torch.randn(1, channels, 6 + index % 3, 9, generator=generator)
        ret.append(x * (1 + 0.1 * index) + 0.2 * index)
    return ret


def all_values(batch: list[Tensor]) -> Tensor:
    """`(C, N)`."""
    return torch.cat([x[0].flatten(1) for x in batch], 1).double()
