"""BRN's limits: closed at first, opening by optimizer steps, kept through a resume."""

import copy

import pytest
import torch

from normdet import layers


def build(**kwargs) -> layers.BatchRenorm:
    return layers.BatchRenorm(4, **{"warmup": 10, "open": 20, **kwargs})


def limits(norm) -> tuple[float, float]:
    return tuple(float(limit) for limit in norm.limits())


def test_limits_open_linearly_after_the_warm_up():
    norm = build()
    seen = {}
    for step in range(60):
        seen[step] = limits(norm)
        layers.after_step(torch.nn.Sequential(norm))
    assert {seen[step] for step in range(11)} == {(1.0, 0.0)}
    assert seen[20] == pytest.approx((2.0, 2.5))
    assert {seen[step] for step in range(30, 60)} == {(3.0, 5.0)}
    assert norm.scalars() == {"r_max": 3.0, "d_max": 5.0}


def test_the_schedule_counts_optimizer_steps_not_batches():
    norm = build()
    for _ in range(3):
        norm(torch.randn(2, 4, 3, 3))
    assert norm.steps == 0 and norm.num_batches_tracked == 3
    layers.after_step(norm.eval())
    assert norm.steps == 0, "a frozen norm has no schedule"


def test_a_resumed_run_goes_on_where_it_stopped():
    torch.manual_seed(0)
    batches = torch.randn(30, 3, 4, 5, 5) * torch.linspace(0.5, 2, 30).view(-1, 1, 1, 1, 1)
    norm = build(momentum=0.1)
    for x in batches[:15]:
        norm(x)
        layers.after_step(norm)
    resumed = build(momentum=0.1)
    resumed.load_state_dict(copy.deepcopy(norm.state_dict()))
    for x in batches[15:]:
        assert torch.equal(norm(x), resumed(x))
        for each in (norm, resumed):
            layers.after_step(each)
    assert limits(resumed) == limits(norm) == (3.0, 5.0)


def test_starts_as_batch_norm_and_ends_as_its_test_time_self():
    torch.manual_seed(0)
    x = torch.randn(4, 4, 6, 6) * 1.5 + 0.7
    norm, plain = build(open=0, momentum=0.1), layers.BatchNorm2d(4)
    torch.testing.assert_close(norm(x), plain(x))
    norm.steps.fill_(11)
    fixed = copy.deepcopy(norm).eval()(x)
    assert (fixed - plain(x)).abs().max() > 0.1
    torch.testing.assert_close(norm(x), fixed, msg="within the limits training is test time")


def test_gradients_at_the_limits():
    """There r and d are constants for finite differences too."""
    norm = build(momentum=0.0, open=0).double()
    norm.steps.fill_(11)
    norm.running_mean.fill_(30.0)
    norm.running_var.fill_(1e-3)
    norm.weight.data.normal_()
    x = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
