"""Stored moments against the formula, and the moments a norm expects of an example."""

import pytest
import torch
from torch import nn

from normdet.layers import FilterResponseNorm2d, GroupNorm, StoredMoments


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "ReLU", "TLU"])
@pytest.mark.parametrize("make", [lambda a: GroupNorm(2, 6, activation=a, learned_eps=True),
                                  lambda a: FilterResponseNorm2d(6, activation=a)])  # fmt: skip
def test_leaving_stored_moments_against_the_formula(make, activation):
    torch.manual_seed(0)
    norm = make(activation).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 6, 5, 4, dtype=torch.double)
    plain = norm(x)
    mean, var = torch.randn(6).double(), torch.rand(6).double() + 0.5
    norm.stored = StoredMoments(mean, var)
    own_mean, own_var = norm.own_moments(x)
    for t in (0.0, 0.3, 1.0):
        norm.stored.t.fill_(t)
        m, v = (1 - t) * mean + t * own_mean, (1 - t) * var + t * own_var
        m, v = (p.view(-1, 6, 1, 1) for p in (m, v))
        y = (x - m) / v.sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        if activation is not None:
            y = y.maximum(norm.tau.view(1, -1, 1, 1) if activation == "TLU" else y.new_zeros(()))
        torch.testing.assert_close(norm(x), y)
    torch.testing.assert_close(norm(x), plain)
    x.requires_grad_()
    norm.stored.t.fill_(0.4)
    assert torch.autograd.gradcheck(lambda x, *p: norm(x), (x, *norm.parameters()))


def test_an_example_with_the_moments_has_them_as_its_own():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 6, dtype=torch.double)
    for norm in (GroupNorm(4, 8), GroupNorm(8, 8), GroupNorm(1, 8), FilterResponseNorm2d(8)):
        expected = norm.expected_moments(x.mean((0, 2, 3)), x.square().mean((0, 2, 3)))
        for one, other in zip(expected, norm.own_moments(x), strict=True):
            torch.testing.assert_close(one, other[0])
