"""The parts of a conversion against what they are defined as."""

import pytest
import torch
from torch import nn

from normdet.convert.channels import Samples, arrange
from normdet.convert.standardized import Patches, sum_to_zero
from normdet.errors import NormdetError
from normdet.layers import BatchNorm2d, FilterResponseNorm2d, GroupNorm, StoredMoments


def test_arranged_groups_deviate_less_than_those_that_were():
    torch.manual_seed(0)
    common = torch.randn(40, 1)
    mean = common * torch.rand(1, 16) + 0.1 * torch.randn(40, 16)
    samples = Samples(mean, mean.square() + 1)
    args = (4, mean.mean(0), samples.square.mean(0), samples)
    order, signs = arrange(*args, reorder=True)
    assert order.sort().values.tolist() == list(range(16)) and set(signs.tolist()) <= {-1.0, 1.0}
    groups = (mean * signs)[:, order].view(40, 4, 4).mean(2)
    assert groups.std(0).mean() < 0.5 * mean.view(40, 4, 4).mean(2).std(0).mean()
    kept, _ = arrange(*args, reorder=False)
    assert kept.tolist() == list(range(16))


def test_without_examples_signs_balance_the_means():
    mean = torch.tensor([3.0, 2.0, 1.0, 0.5])
    _, signs = arrange(1, mean, mean.square() + 1, None, reorder=False)
    assert abs(float((mean * signs).sum())) <= 0.5


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


def test_expected_moments_are_the_own_of_an_example_that_has_them():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 6, dtype=torch.double)
    for norm in (GroupNorm(4, 8), GroupNorm(8, 8), GroupNorm(1, 8), FilterResponseNorm2d(8)):
        expected = norm.expected_moments(x.mean((0, 2, 3)), x.square().mean((0, 2, 3)))
        for one, other in zip(expected, norm.own_moments(x), strict=True):
            torch.testing.assert_close(one, other[0])


def test_what_is_expected_of_a_norm_is_asked_without_setting_its_averages():
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


def test_weights_with_a_learned_epsilon_need_it():
    state = GroupNorm(2, 4, learned_eps=True).state_dict()
    with pytest.raises(NormdetError, match="MODEL.NORMDET.GN.LEARNED_EPS always"):
        GroupNorm(2, 4).load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "eager", "cpp"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_learned_epsilon_of_a_group_norm_has_its_gradient(backend, groups):
    from normdet.ops import cpp

    if backend == "cpp" and not cpp.available():
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    norm = GroupNorm(groups, 6, activation="TLU", backend=backend, learned_eps=True).double()
    norm.eps_l.data.fill_(-0.3)
    x = torch.randn(2, 6, 4, 4, dtype=torch.double, requires_grad=True)
    y = norm(x)
    grouped = x.view(2, groups, -1)
    var, mean = torch.var_mean(grouped, 2, correction=0, keepdim=True)
    expected = ((grouped - mean) / (var + 1e-5 + 0.3).sqrt()).view_as(x).relu()
    torch.testing.assert_close(y, expected)
    assert torch.autograd.gradcheck(lambda x, *p: norm(x), (x, *norm.parameters()))
