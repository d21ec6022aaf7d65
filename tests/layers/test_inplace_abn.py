"""InPlaceABN against BN and leaky ReLU: less is kept for backward, and gradients are equal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normdet import layers
from normdet.errors import NormdetError
from tests.layers.kept import kept_buffers


@pytest.mark.parametrize("inplace", [False, True])
def test_keeps_one_activation_sized_buffer_fewer(inplace):
    x = torch.randn(4, 8, 9, 9, requires_grad=True)
    bn, abn = layers.BatchNorm2d(8), layers.InPlaceABN(8)
    plain = kept_buffers(lambda x: F.leaky_relu(bn(x), 0.01, inplace=inplace), x)
    ours = kept_buffers(abn, x)
    assert (plain, ours) == (2, 1)


def test_in_a_network_only_the_output_lives_on():
    """The next convolution keeps the output anyway, so norm and activation add nothing."""
    x = torch.randn(2, 8, 9, 9)
    first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    bn, abn = layers.BatchNorm2d(8), layers.InPlaceABN(8)
    plain = kept_buffers(lambda x: second(F.leaky_relu(bn(first(x)), 0.01)), x)
    ours = kept_buffers(lambda x: second(abn(first(x))), x)
    assert (plain, ours) == (4, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_equal_those_of_batch_norm_and_leaky_relu(dtype, sign):
    torch.manual_seed(0)
    x = (torch.randn(4, 8, 9, 9, dtype=dtype) * 3 + 2).requires_grad_()
    abn, bn = layers.InPlaceABN(8).to(dtype), nn.BatchNorm2d(8).to(dtype)
    with torch.no_grad():
        abn.weight.copy_(torch.rand(8) + 0.1).mul_(sign)
        bn.weight.copy_(abn.weight.abs() + abn.eps)
        abn.bias.normal_()
        bn.bias.copy_(abn.bias)
    weight = torch.randn_like(x)
    want = F.leaky_relu(bn(x), 0.01)
    want_grads = torch.autograd.grad((want * weight).sum(), [x, bn.weight, bn.bias])
    y = abn(x)
    grads = torch.autograd.grad((y * weight).sum(), [x, abn.weight, abn.bias])
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(grads[0], want_grads[0])
    torch.testing.assert_close(grads[1], want_grads[1] * sign)
    torch.testing.assert_close(grads[2], want_grads[2])
    for name, value in bn.state_dict().items():
        if name != "weight":
            torch.testing.assert_close(abn.state_dict()[name], value)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", None])
def test_gradients_of_each_activation(activation):
    norm = layers.InPlaceABN(4, activation=activation).double()
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_elu_far_below_zero_loses_no_gradient_to_infinity():
    norm = layers.InPlaceABN(1, activation="elu")
    norm.bias.data.fill_(-100.0)
    x = torch.randn(4, 1, 3, 3, requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("activation", "slope"), [("ReLU", 0.01), ("leaky_relu", 0.0)])
def test_what_cannot_be_inverted_is_refused(activation, slope):
    with pytest.raises(NormdetError, match="cannot invert"):
        layers.InPlaceABN(4, activation=activation, slope=slope)
