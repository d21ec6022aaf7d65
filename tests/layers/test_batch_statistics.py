"""Norms with statistics of the batch."""

import torch

from normdet.layers import BatchNorm2d


def test_expected_moments_do_not_change_the_averages():
    norm = BatchNorm2d(3)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    mean, square = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 8.0, 9.5])
    centre, var = norm.expected_moments(mean, square)
    assert torch.equal(centre, mean) and torch.equal(var, square - mean.square())
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    norm.put_moments(mean, square)
    x = torch.randn(2, 3, 4, 4)
    want = (x - centre.view(3, 1, 1)) / var.sqrt().view(3, 1, 1)
    torch.testing.assert_close(norm.eval()(x), want)
