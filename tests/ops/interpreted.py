"""The Triton kernels on the CPU under Triton's interpreter; `test_triton.py` runs this file.

The interpreter cuts fp32 to bf16 where the hardware rounds: hence the wide tolerance there.

Limits are shrunk so that small tensors reach every regime, and fresh buffers hold NaN.
"""

import itertools

import pytest
import torch

from normdet.ops import eager, triton_norm, triton_point
from normdet.ops.layout import memory_format
from normdet.ops.triton_tiles import Limits
from tests.ops import cases

LIMITS = {"whole": Limits(), "many rows": Limits(256, 32), "split": Limits(8, 16)}
SHAPES = [(2, 6, 5, 7), (3, 4), (1, 4, 2, 3, 4), (0, 4, 3, 3), (2, 20, 3, 5), (1, 1, 6, 11)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = itertools.cycle(TOLERANCE)


def close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype, memory_format(a)) == (b.shape, b.dtype, memory_format(b))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 5)


def sample(shape, last, dtype):
    if last and len(shape) < 4:
        pytest.skip("channels last needs two dimensions of space")
    x, *parameters = cases.inputs(shape, dtype, last=last)
    return x, torch.randn_like(x), parameters


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("regime", LIMITS)
@pytest.mark.parametrize("kind", ["rms", "group", "layer", "deviation"])
def test_norm(kind, regime, last, shape, empty_is_nan):
    dtype = next(DTYPES)
    x, dy, (weight, bias, tau) = sample(shape, last, dtype)
    channels = shape[1]
    groups = {"group": max(1, channels // 2), "layer": 1}.get(kind, channels)
    if kind != "rms" and x[:1].numel() // groups < 2:
        pytest.skip("a group of one number has no variance")
    name = kind if kind in ("rms", "deviation") else "group"
    if kind == "deviation":  # of a weight: no parameters, no activation
        activation, given, learned = None, (None, None, None), None
    else:
        activation, given = "TLU", (weight, bias, tau)
        learned = torch.tensor([0.01]) if kind == "rms" else None
    options = (name, groups, 1e-3, activation)
    limits = LIMITS[regime]
    theirs = eager.norm_forward(x, *given, learned, *options)
    close(
        triton_norm.norm_forward(x, *given, learned, *options, limits=limits),
        theirs,
        TOLERANCE[dtype],
    )
    inputs = (dy, x, *theirs[1:], *given, *options, learned is not None)
    close(
        triton_norm.norm_backward(*inputs, limits=limits),
        eager.norm_backward(*inputs),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("regime", ["whole", "split"])
@pytest.mark.parametrize("activation", [None, "ReLU", "TLU"])
def test_point(activation, regime, last, shape, empty_is_nan):
    dtype = next(DTYPES)
    x, dy, (weight, bias, tau) = sample(shape, last, dtype)
    tau = tau if activation == "TLU" else None
    limits = LIMITS[regime]
    y = triton_point.affine_forward(x, weight, bias, tau, activation, limits=limits)
    close([y], [eager.affine_forward(x, weight, bias, tau, activation)], TOLERANCE[dtype])
    z = triton_point.add_forward(x, dy, tau, activation, limits=limits)
    close([z], [eager.add_forward(x, dy, tau, activation)], TOLERANCE[dtype])
    for scale in (weight, None) if activation else ():
        ours = triton_point.point_backward(dy, y, scale, tau, activation, limits=limits)
        theirs = eager.point_backward(dy, y, scale, tau, activation)
        kept = slice(2 if activation == "TLU" else 1)  # without a tau there is no dtau
        close(ours[kept], theirs[kept], TOLERANCE[dtype])


def test_parts_of_one_step_through_the_operators():
    for call in (cases.frn("TLU"), cases.group_norm(2, "ReLU"), cases.join("TLU")):
        activation = "ReLU" if call.__qualname__.startswith("group_norm") else "TLU"
        tensors = cases.inputs((2, 4, 5, 3), torch.float32, activation=activation)
        cases.assert_as_good(call, tensors, "triton", torch.randn(2, 4, 5, 3))


def test_gradients_never_vary():
    x, dy, (weight, bias, tau) = sample((2, 6, 5, 7), False, torch.float32)
    call = (x, weight, bias, tau, None, "rms", 6, 1e-6, "TLU", "triton")
    _, mean, rstd = torch.ops.normdet.norm_act(*call)
    inputs = (dy, x, mean, rstd, weight, bias, tau, "rms", 6, 1e-6, "TLU", False)
    first, second = (triton_norm.norm_backward(*inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
