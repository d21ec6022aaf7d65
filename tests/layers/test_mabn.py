"""MABN past its warm-up: moving averages forward and backward, against the authors' algorithm."""

import torch

from normdet import layers
from tests.layers import reference


def test_steps_before_and_after_each_start():
    """Buffer 3, averages from step 4 and the correction from step 6 on: every case is met."""
    torch.manual_seed(0)
    settings = {"buffer": 3, "momentum": 0.3, "warmup": 4, "open": 6, "eps": 1e-5}
    norm = layers.MovingAverageBatchNorm(5, **settings).double()
    norm.weight.data.normal_(1, 0.3)
    norm.bias.data.normal_()
    want = reference.MovingAverages(5, **settings)
    for step in range(10):
        x = torch.randn(2, 5, 3, 4, dtype=torch.float64) * (1 + step) + 0.5
        grad = torch.randn_like(x)
        x.requires_grad_()
        y = norm(x)
        got = (y, *torch.autograd.grad(y, (x, norm.weight, norm.bias), grad))
        rows = [t.detach().movedim(1, -1).flatten(0, -2) for t in (x, grad)]
        expected = want.step(rows[0], norm.weight.detach(), norm.bias.detach(), rows[1])
        for ours, theirs in zip(got[:2], expected[:2], strict=True):
            torch.testing.assert_close(ours.detach().movedim(1, -1).flatten(0, -2), theirs)
        for ours, theirs in zip(got[2:], expected[2:], strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(norm.running_var, want.running)
    fixed = reference.fixed_batch_norm(x.detach(), 0 * want.running, want.running, 1e-5)
    affine = reference.affine(fixed, norm.weight, norm.bias)
    torch.testing.assert_close(norm.eval()(x), affine)


def test_training_computes_what_test_time_does_once_averages_rest():
    norm = layers.MovingAverageBatchNorm(4, buffer=2, warmup=0, open=0, momentum=0.5).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    for _ in range(80):
        y = norm(x)
    # The running average holds the unbiased square, 75 values a channel.
    torch.testing.assert_close(y, norm.eval()(x))


def test_batch_norm_weights_keep_their_function():
    bn = torch.nn.BatchNorm2d(4).eval()
    for value in (*bn.parameters(), bn.running_mean, bn.running_var):
        value.data.uniform_(0.5, 1.5)
    norm = layers.MovingAverageBatchNorm(4).eval()
    missing, unexpected = norm.load_state_dict(bn.state_dict(), strict=False)
    assert set(missing) == {"steps", "past_squares", "past_grads"} and not unexpected
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(norm(x), bn(x))
    norm.train()(x)
    assert torch.equal(norm.running_mean, bn.running_mean)  # the centre stays
