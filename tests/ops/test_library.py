"""The operators as torch sees them: opcheck, compile, export, autocast, tracing, torch.func."""

import pytest
import torch

from normdet import ops
from tests.ops import cases

OPERATORS = torch.ops.normdet


def samples(last):
    x, weight, bias, tau = (
        t.requires_grad_() for t in cases.inputs((2, 4, 3, 5), torch.float32, last=last)
    )
    plain = [t.detach() for t in (weight, bias, tau)]
    dy = torch.randn_like(x)
    mean, rstd = torch.randn(2, 2), torch.rand(2, 2) + 0.5
    eps = torch.tensor([1e-3], requires_grad=True)
    none = (None,) * 4
    yield OPERATORS.norm_act, (x, None, weight, bias, tau, eps, "rms", 4, 0.0, "TLU", None, "eager")
    yield OPERATORS.norm_act, (x, None, weight, *none[:3], "group", 2, 1e-5, "ReLU", None, "auto")
    yield OPERATORS.norm_act, (x, None, *none, "deviation", 4, 1e-5, None, None, "auto")
    joined = (x, dy.clone().requires_grad_(), weight, bias, tau)
    for backend in ("eager", "auto"):
        yield OPERATORS.norm_act, (*joined, None, "group", 2, 1e-5, "TLU", None, backend)
    wide = (x.bfloat16().detach().requires_grad_(), None, weight, bias, None, None)
    yield OPERATORS.norm_act, (*wide, "group", 2, 1e-5, "ReLU", torch.float32, "eager")
    yield (
        OPERATORS.norm_act_backward,
        (dy, x.detach(), None, mean, rstd, *plain, "group", 2, 1e-5, "TLU", True, "auto"),
    )
    yield (
        OPERATORS.norm_act_backward,
        (dy, x.detach(), dy, mean, rstd, *none[:3], "group", 2, 1e-5, "ReLU", False, "eager"),
    )
    yield OPERATORS.point_act, (x, None, plain[0], plain[1], tau, "TLU", "auto")
    yield OPERATORS.point_act, (x, None, plain[0], plain[1], None, None, "auto")
    yield OPERATORS.point_act, (*joined[:2], plain[0], plain[1], tau, "TLU", "auto")
    yield OPERATORS.point_act, (*joined[:2], None, None, tau, "TLU", "auto")
    yield OPERATORS.point_act, (x, dy, None, None, None, "ReLU", "eager")
    yield OPERATORS.point_act_backward, (dy, x.detach(), plain[0], True, plain[2], "auto")
    yield OPERATORS.point_act_backward, (dy, x.detach(), None, False, None, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("index", range(15))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_opcheck(index, last):
    operator, inputs = list(samples(last))[index]
    torch.library.opcheck(operator, inputs)


@pytest.mark.slow
def test_compiles_to_one_graph_for_any_size():
    tau = torch.zeros(4, requires_grad=True)
    weight = torch.ones(4, requires_grad=True)

    def block(x):
        y = ops.frn_tlu(x, weight, None, tau, eps=1e-6, activation="TLU")
        y = ops.group_norm_act(y * 2, 2, weight, None, eps=1e-5)
        return ops.add_act(x, y, activation="ReLU")

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((2, 4, 5, 6), (3, 4, 7, 9)):
        x = torch.randn(size, requires_grad=True)
        results = []
        for function in (block, compiled):
            x.grad = tau.grad = None
            y = function(x)
            y.square().sum().backward()
            results.append((y.detach(), x.grad, tau.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_an_export_holds_standard_operators_alone():
    class Net(torch.nn.Module):
        def forward(self, x):
            return ops.frn_tlu(x, None, None, eps=1e-6)

    x = torch.randn(2, 4, 3, 5)
    program = torch.export.export(Net(), (x,))
    assert "normdet" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), Net()(x))


def test_a_trace_holds_standard_operators_alone():
    def net(x):
        return ops.frn_tlu(x, None, None, eps=1e-6)

    x = torch.randn(2, 4, 3, 5)
    traced = torch.jit.trace(net, x)
    assert "normdet::" not in str(traced.graph)
    torch.testing.assert_close(traced(x), net(x))


def test_autocast_leaves_the_dtype_to_the_convolution():
    conv = torch.nn.Conv2d(3, 8, 3)
    tau = torch.zeros(8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(torch.randn(2, 3, 9, 9))
        z = ops.frn_tlu(y, None, None, tau, eps=1e-6, activation="TLU")
    assert y.dtype == z.dtype == torch.bfloat16
    z.float().sum().backward()
    assert tau.grad.dtype == conv.weight.grad.dtype == torch.float32


def test_watchers_see_the_operator():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        ops.frn_tlu(torch.randn(2, 4, 3, 5), None, None, eps=1e-6)
    assert "normdet.norm_act.default" in seen


def test_torch_func_differentiates():
    x = torch.randn(2, 4, 3, 5)

    def loss(x, backend):
        return ops.frn_tlu(x, None, None, eps=1e-6, backend=backend).pow(3).sum()

    torch.testing.assert_close(
        torch.func.grad(loss)(x, "auto"), torch.func.grad(loss)(x, "reference")
    )
