"""The Triton kernels on the CPU under Triton's interpreter; `test_triton.py` runs this file.

The interpreter cuts fp32 to bf16 where the hardware rounds: hence the wide tolerance there.

Limits are shrunk so that small tensors reach every regime, and fresh buffers hold NaN.
"""

import pytest
import torch

from normdet.ops import eager, triton_norm, triton_point
from normdet.ops.layout import memory_format
from normdet.ops.triton_tiles import Limits
from tests.ops import cases

LIMITS = {
    "whole": Limits(),
    "whole, in steps": Limits(rows=4, columns=8, programs=1),
    "split": Limits(whole=0, rows=4, columns=4, flat=8, programs=12, steps=2),
}
SHAPES = [
    (2, 6, 5, 7), (3, 4), (1, 4, 2, 3, 4), (0, 4, 3, 3), (2, 20, 3, 5), (1, 1, 6, 11), (6, 8, 4, 2),
]  # fmt: skip
KINDS = ["rms", "rms in groups", "group", "layer", "deviation"]
ACTIVATIONS = [None, "ReLU", "TLU"]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, tuple):  # the gradients of parameters, None for those not given
            b = [g for g, own in zip(b, a, strict=True) if own is not None]
            close([own for own in a if own is not None], b, tolerance)
            continue
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.shape, a.dtype, memory_format(a)) == (b.shape, b.dtype, memory_format(b))
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 5)


def sample(shape, last, dtype):
    if last and len(shape) < 4:
        pytest.skip("channels last needs two dimensions of space")
    x, weight, bias, tau = cases.inputs(shape, dtype, last=last)
    dy = cases.inputs(shape, dtype, last=last, seed=1)[0]
    # A threshold that every dtype holds: cut otherwise than rounded, it would part the two forms.
    return x, dy, (weight, bias, tau.bfloat16().float())


def turn(shape, last, regime, what) -> tuple[torch.dtype, bool]:
    """A case's dtype, and whether a residual is added: each pair meets each `what` and regime.

    They follow from where the case's values stand in the lists, never from what ran before.
    """
    at = SHAPES.index(shape)
    dtype = list(TOLERANCE)[(at + last + list(LIMITS).index(regime) + what) % len(TOLERANCE)]
    return dtype, bool((at // len(TOLERANCE) + last) % 2)


def test_every_pair_of_dtype_and_residual_has_its_turn():
    for regime in LIMITS:
        for what in range(len(KINDS)):
            met = {turn(shape, False, regime, what) for shape in SHAPES}
            assert met == {(dtype, joined) for dtype in TOLERANCE for joined in (False, True)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("regime", LIMITS)
@pytest.mark.parametrize("kind", KINDS)
def test_norm(kind, regime, last, shape, empty_is_nan):
    dtype, joined = turn(shape, last, regime, KINDS.index(kind))
    joined = joined and kind != "deviation"
    x, dy, (weight, bias, tau) = sample(shape, last, dtype)
    channels = shape[1]
    halves = max(1, channels // 2)
    groups = {"group": halves, "rms in groups": halves, "layer": 1}.get(kind, channels)
    centred = not kind.startswith("rms")
    if centred and x[:1].numel() // groups < 2:
        pytest.skip("a group of one number has no variance")
    name = "deviation" if kind == "deviation" else "group" if centred else "rms"
    if kind == "deviation":  # of a weight: no parameters, no activation
        activation, given, learned = None, (None, None, None), None
    else:
        activation, given = "TLU", (weight, bias, tau)
        learned = None if centred else torch.tensor([0.01])
    residual = cases.inputs(shape, dtype, last=last, seed=2)[0] if joined else None
    options = (name, groups, 1e-3, activation)
    limits = LIMITS[regime]
    inputs = (x, residual, *given, learned, *options)
    theirs = eager.norm_forward(*inputs)
    close(triton_norm.norm_forward(*inputs, limits=limits), theirs, TOLERANCE[dtype])
    out = theirs[0] if joined else None
    inputs = (dy, x, out, *theirs[1:], *given, *options, learned is not None)
    close(
        triton_norm.norm_backward(*inputs, limits=limits),
        eager.norm_backward(*inputs),
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("regime", ["whole", "split"])
def test_a_wider_output(regime, empty_is_nan):
    x, _, (weight, bias, _) = sample((2, 6, 5, 7), False, torch.bfloat16)
    inputs = (x, None, weight, bias, None, None, "group", 3, 1e-3, "ReLU", torch.float32)
    limits = LIMITS[regime]
    theirs = eager.norm_forward(*inputs)
    close(triton_norm.norm_forward(*inputs, limits=limits), theirs, 1e-5)
    dy = cases.inputs((2, 6, 5, 7), theirs[0].dtype, seed=1)[0]
    inputs = (dy, x, None, *theirs[1:], weight, bias, None, "group", 3, 1e-3, "ReLU", False)
    theirs = eager.norm_backward(*inputs)
    close(triton_norm.norm_backward(*inputs, limits=limits), theirs, 3e-2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("regime", ["whole", "split"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_point(activation, regime, last, shape, empty_is_nan):
    dtype, _ = turn(shape, last, regime, ACTIVATIONS.index(activation))
    x, dy, (weight, bias, tau) = sample(shape, last, dtype)
    tau = tau if activation == "TLU" else None
    limits = LIMITS[regime]
    residual = cases.inputs(shape, dtype, last=last, seed=2)[0]
    for affine in ((weight, bias), (None, None)):
        for added in (residual, None) if affine[0] is not None else (residual,):
            inputs = (x, added, *affine, tau, activation)
            y = triton_point.point_forward(*inputs, limits=limits)
            close([y], [eager.point_forward(*inputs)], TOLERANCE[dtype])
            if activation is not None:
                inputs = (dy, y, affine[0], added is not None, tau)
                ours = triton_point.point_backward(*inputs, limits=limits)
                close(ours, eager.point_backward(*inputs), TOLERANCE[dtype])


def test_memory_that_starts_anywhere_and_parameters_in_half_precision():
    x, _, parameters = sample((2, 6, 4, 8), False, torch.float16)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view_as(x).copy_(x)
    inputs = (None, *(p.half() for p in parameters), None, "group", 3, 1e-3, "TLU")
    close(triton_norm.norm_forward(shifted, *inputs), eager.norm_forward(x, *inputs), 4e-3)


def test_a_large_mean_costs_no_digits():
    x, _, (weight, bias, _) = sample((1, 4, 16, 24), False, torch.float32)
    x = x + 1000
    for limits in (Limits(), Limits(rows=4, columns=8, flat=16, whole=0, programs=4)):
        inputs = (None, weight, bias, None, None, "group", 2, 1e-5, None)
        y, _, rstd = triton_norm.norm_forward(x, *inputs, limits=limits)
        exact, _, exact_rstd = eager.norm_forward(x.double(), *inputs)
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=5e-4)
        torch.testing.assert_close(rstd.double(), exact_rstd, rtol=1e-5, atol=0)


def test_parts_of_one_step_through_the_operators():
    torch.manual_seed(0)
    for call in (cases.frn("TLU"), cases.group_norm(2, "ReLU"), cases.join("TLU")):
        activation = "ReLU" if call.__qualname__.startswith("group_norm") else "TLU"
        tensors = cases.inputs((2, 4, 5, 3), torch.float32, activation=activation)
        cases.assert_as_good(call, tensors, "triton", torch.randn(2, 4, 5, 3))
    residual = torch.randn(2, 4, 5, 3)
    for call in (cases.frn("TLU"), cases.group_norm(2, "TLU"), cases.frozen("TLU")):
        tensors = [*cases.inputs((2, 4, 5, 3), torch.float32), residual]
        cases.assert_as_good(cases.joined(call), tensors, "triton", torch.randn(2, 4, 5, 3))


def test_gradients_never_vary():
    x, dy, (weight, bias, tau) = sample((2, 6, 5, 7), False, torch.float32)
    call = (x, None, weight, bias, tau, None, "rms", 6, 1e-6, "TLU")
    _, mean, rstd = triton_norm.norm_forward(*call)
    inputs = (dy, x, None, mean, rstd, weight, bias, tau, "rms", 6, 1e-6, "TLU", False)
    for limits in LIMITS.values():
        first, second = (triton_norm.norm_backward(*inputs, limits=limits) for _ in range(2))
        first, second = (torch.utils._pytree.tree_leaves(x) for x in (first, second))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_filters_are_examples_of_one_group(last, empty_is_nan):
    weight, dy = (
        cases.inputs((6, 8, 3, 2), torch.float32, last=last, seed=seed)[0] for seed in (0, 1)
    )
    options = ("deviation", 1, 1e-5, None)
    theirs = eager.norm_forward(weight, *[None] * 5, *options)
    close(triton_norm.norm_forward(weight, *[None] * 5, *options), theirs, 1e-5)
    inputs = (dy, weight, None, *theirs[1:], None, None, None, *options, False)
    close(triton_norm.norm_backward(*inputs), eager.norm_backward(*inputs), 1e-5)
