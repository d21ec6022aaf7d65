"""Means and deviations of pixels."""

import numpy as np
import pytest

from normdet.medical.prepare.statistics import channel_sums, mean_and_std


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_means_are_bgr_and_exact(dtype):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(dtype)
    mean, std = mean_and_std(channel_sums(image) + channel_sums(image[::-1]))
    assert mean == pytest.approx(image.reshape(-1, 3).mean(0)[::-1], abs=1e-3)
    assert std == pytest.approx(image.reshape(-1, 3).std(0)[::-1], abs=1e-3)
    assert mean_and_std(channel_sums(np.full((3, 3), 7, dtype))) == ([7.0] * 3, [1.0] * 3)
