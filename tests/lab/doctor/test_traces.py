"""Moments of many images are those of all their values."""

import torch

from normdet.lab.doctor.traces import Moments
from tests.lab.doctor.made import all_values, images


def test_moments_of_images_pool_to_those_of_all_values():
    batch = images()
    pooled = Moments.pool([Moments.of(x) for x in batch])
    values = all_values(batch)
    assert pooled.count == values.shape[1]
    torch.testing.assert_close(pooled.mean, values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pooled.var, values.var(1, correction=0), rtol=1e-5, atol=1e-6)
