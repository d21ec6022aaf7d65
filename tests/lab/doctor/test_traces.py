"""Moments of many images are those of all their values."""

import torch
from torch import Tensor

from normdet.lab.doctor.traces import Moments


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


def test_moments_of_images_pool_to_those_of_all_values():
    batch = images()
    pooled = Moments.pool([Moments.of(x) for x in batch])
    values = all_values(batch)
    assert pooled.count == values.shape[1]
    torch.testing.assert_close(pooled.mean, values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pooled.var, values.var(1, correction=0), rtol=1e-5, atol=1e-6)
