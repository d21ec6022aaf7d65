"""Filters that must sum to zero change as little as their inputs allow."""

import torch
from torch import nn

from normdet.convert.standardized import Patches, sum_to_zero


def test_filters_sum_to_zero_at_the_least_change():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 3, padding=1, bias=False)
    x = torch.randn(8, 6, 12, 12).relu() * torch.rand(1, 6, 1, 1)
    patches = Patches.of(conv, x)
    new, mean, square, lacks = sum_to_zero(conv.weight.detach(), patches)
    assert new.flatten(1).sum(1).abs().max() < 1e-5
    plain = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)

    def change(weight):
        out = nn.functional.conv2d(x, weight - conv.weight, padding=1)
        return out.var((0, 2, 3)).sum()

    assert change(new) < change(plain)
    out = nn.functional.conv2d(x, new, padding=1)
    torch.testing.assert_close(out.mean((0, 2, 3)), mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out.square().mean((0, 2, 3)), square, rtol=1e-3, atol=1e-3)
    full = conv(x).mean((0, 2, 3))
    torch.testing.assert_close(mean + lacks, full, rtol=1e-3, atol=1e-3)
