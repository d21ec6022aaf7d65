"""Orders and signs of channels: groups that deviate less, means that cancel."""

import torch

from normdet.convert.channels import Samples, arrange


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
