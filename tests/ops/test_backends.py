"""Every backend against the plain form: numbers, gradients, odd shapes, layouts and dtypes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from normdet import ops
from normdet.errors import NormdetError
from normdet.ops import library, reference
from tests.ops import cases

SHAPES = [
    (2, 8, 5, 7),  # rows shorter than a vector
    (3, 12, 33, 29),
    (2, 1, 9, 11),  # one channel
    (2, 8, 1, 1),
    (4, 8),
    (2, 8, 13),
    (2, 4, 3, 4, 5),
    (0, 8, 5, 7),
]
CALLS = {
    "frn": cases.frn("TLU"),
    "frn-relu": cases.frn("ReLU"),
    "frn-none": cases.frn(None),
    "rms": cases.group_rms(4, "ReLU"),
    "rms-tlu": cases.group_rms(1, "TLU"),
    "gn": cases.group_norm(4, "ReLU"),
    "gn-tlu": cases.group_norm(2, "TLU"),
    "ln": cases.group_norm(1, None),
    "frozen": cases.frozen("ReLU"),
    "frozen-tlu": cases.frozen("TLU"),
    "join": cases.join("ReLU"),
    "join-tlu": cases.join("TLU"),
}
TLU = {"frn", "rms-tlu", "gn-tlu", "frozen-tlu", "join-tlu"}


def make(name, shape, dtype, **options):
    return cases.inputs(shape, dtype, activation="TLU" if name in TLU else None, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_errs_at_most_twice_as_much_as_plain_torch(name, dtype, backend, empty_is_nan):
    for shape in SHAPES:
        groups = {"gn": 4, "rms": 4, "gn-tlu": 2}.get(name, 1)
        alone = shape[1] // groups * torch.Size(shape[2:]).numel() < 2
        if shape[1] % groups or ("n" in name[:2] and name[0] in "gl" and alone):
            continue  # a group of a single number has no variance, and no gradient to compare
        for last in (False, True) if len(shape) > 3 else (False,):
            tensors = make(name, shape, dtype, last=last)
            dy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            if last:
                dy = dy.contiguous(memory_format=torch.contiguous_format)  # unlike x's
            cases.assert_as_good(CALLS[name], tensors, backend, dy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["frn", "frn-relu", "frn-none", "gn", "gn-tlu", "ln", "frozen", "frozen-tlu"]
)
def test_a_residual_in_the_same_pass(name, dtype, backend, empty_is_nan):
    for shape in SHAPES:
        groups = {"gn": 4, "rms": 4, "gn-tlu": 2}.get(name, 1)
        if shape[1] % groups or (name[:2] in ("gn", "ln") and shape[1:].count(1) > 1):
            continue
        for last in (False, True) if len(shape) > 3 else (False,):
            tensors = make(name, shape, dtype, last=last)
            residual = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
            dy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            call = cases.joined(CALLS[name])
            cases.assert_as_good(call, [*tensors, residual], backend, dy)


def test_a_residual_of_another_shape_or_dtype_takes_the_plain_form(backend):
    x, weight, bias, _ = cases.inputs((2, 4, 3, 5), torch.float32)
    for residual in (torch.randn(1, 4, 1, 1), torch.randn(2, 4, 3, 5).double()):
        y, z = (
            ops.group_norm_act(x, 2, weight, bias, eps=1e-5, residual=residual, backend=b)
            for b in (backend, "reference")
        )
        assert torch.equal(y, z)


def test_a_wider_output(backend):
    x, weight, bias, _ = cases.inputs((2, 8, 5, 7), torch.bfloat16)
    results = []
    for b in (backend, "reference"):
        leaf = x.detach().requires_grad_()
        y = ops.group_norm_act(
            leaf, 4, weight, bias, eps=1e-5, activation="ReLU", dtype=torch.float32, backend=b
        )
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    (y, dx), (z, dz) = results
    assert y.dtype == torch.float32 and dx.dtype == torch.bfloat16
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(dx, dz, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", ["frn", "gn", "ln"])
def test_long_rows(name, last, backend):
    tensors = make(name, (1, 4, 331, 307), torch.float32, last=last)
    cases.assert_as_good(CALLS[name], tensors, backend, torch.randn(1, 4, 331, 307))


@pytest.mark.parametrize("last", [False, True])
def test_a_large_mean_costs_group_norm_no_digits(last, backend):
    tensors = make("gn", (2, 8, 40, 41), torch.float32, last=last)
    tensors[0] += 1000
    cases.assert_as_good(CALLS["gn"], tensors, backend, torch.randn(2, 8, 40, 41))


def test_learned_eps(backend):
    for shape in ((6, 8), (2, 8, 1, 1), (2, 8, 4, 5)):
        tensors = [*cases.inputs(shape, torch.float32), torch.tensor([1e-2])]
        cases.assert_as_good(cases.frn_learned("TLU"), tensors, backend, torch.randn(shape))


@pytest.mark.parametrize("name", ["frn", "gn-tlu", "frozen-tlu", "join-tlu"])
def test_inputs_of_any_strides(name, backend):
    base = torch.randn(4, 16, 9, 10)
    views = {
        "sliced": base[::2, ::2, 1:-1, ::3],
        "permuted": base.permute(0, 1, 3, 2),
        "sliced channels last": base.contiguous(memory_format=torch.channels_last)[:, 4:12],
        "expanded": base[:1].expand(3, -1, -1, -1),
    }
    for what, x in views.items():
        parameters = cases.inputs(x.shape, torch.float32)[1:]
        dy = torch.randn(1, 1, 1, 1)  # expanded in cases.run
        leaf = x.detach().requires_grad_()
        y = CALLS[name]([leaf, *parameters], backend)
        z = CALLS[name]([x.contiguous(), *parameters], "reference")
        torch.testing.assert_close(y, z, msg=lambda m, what=what: f"{what}: {m}")
        y.backward(dy.expand(y.shape))
        assert leaf.grad.isfinite().all()


def test_channels_last_stays_so(backend):
    for x in (torch.randn(2, 8, 5, 7), torch.randn(2, 8, 3, 5, 7)):
        form = cases.CHANNELS_LAST[x.dim()]
        x = x.contiguous(memory_format=form).requires_grad_()
        y = ops.frn_tlu(x, None, None, eps=1e-6, backend=backend)
        assert y.is_contiguous(memory_format=form)
        y.sum().backward()
        assert x.grad.is_contiguous(memory_format=form)


@pytest.mark.parametrize(
    "name", ["frn", "frn-none", "gn-tlu", "gn", "ln", "frozen-tlu", "join-tlu"]
)
def test_gradcheck(name, backend):
    shape = (2, 4, 3, 2)
    leaves = [
        None if t is None else t.double().requires_grad_() for t in make(name, shape, torch.float32)
    ]
    given = [t for t in leaves if t is not None]

    def call(*given):
        values = iter(given)
        return CALLS[name]([None if t is None else next(values) for t in leaves], backend)

    used = given if name[:2] in ("fr", "gn", "ln") and "frozen" not in name else [given[0]]
    assert torch.autograd.gradcheck(
        lambda *g: call(*g, *given[len(g) :]), used, check_undefined_grad=False
    )


def test_ties_give_their_gradient_to_tau(backend):
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)  # y = bias = tau everywhere
    tau = torch.zeros(2, requires_grad=True)
    ops.frn_tlu(x, None, None, tau, eps=1e-6, activation="TLU", backend=backend).sum().backward()
    assert tau.grad.tolist() == [9, 9] and not x.grad.any()
    tau.grad = None
    ops.add_act(x, x.detach(), tau, activation="TLU", backend=backend).sum().backward()
    assert tau.grad.tolist() == [9, 9]


def test_nan_is_not_hidden(backend):
    x = torch.randn(2, 2, 4, 4)
    x[0, 0, 1, 2] = float("nan")
    tau = torch.zeros(2)
    y = ops.frn_tlu(x, None, None, tau, eps=1e-6, activation="TLU", backend=backend)
    assert y[0, 0].isnan().all() and y[1].isfinite().all()
    assert ops.add_act(x, x, activation="ReLU", backend=backend).isnan().sum() == 1


def test_group_norm_is_torchs(backend):
    x, weight, bias, _ = cases.inputs((2, 32, 20, 30), torch.float32)
    y = ops.group_norm_act(x, 8, weight, bias, eps=1e-5, activation="ReLU", backend=backend)
    torch.testing.assert_close(y, F.relu(F.group_norm(x, 8, weight, bias, 1e-5)))
    plain = ops.group_norm_act(x, 8, weight, bias, eps=1e-5, backend="reference")
    assert torch.equal(plain, F.group_norm(x, 8, weight, bias, 1e-5))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_frozen_bn_is_detectron2s(trained, dtype, backend):
    layers = pytest.importorskip("detectron2.layers")
    x, weight, bias, _ = cases.inputs((2, 8, 6, 5), dtype)
    theirs = layers.FrozenBatchNorm2d(8)
    theirs.load_state_dict(
        {"weight": weight, "bias": bias, "running_mean": bias, "running_var": weight.square()}
    )
    fixed = (weight, bias, theirs.running_mean, theirs.running_var)
    x.requires_grad_(trained)
    y = ops.frozen_bn_act(x, *fixed, eps=theirs.eps, activation="ReLU", backend="reference")
    assert torch.equal(y, F.relu(theirs(x)))
    fused = ops.frozen_bn_act(x, *fixed, eps=theirs.eps, activation="ReLU", backend=backend)
    torch.testing.assert_close(fused, y)


@pytest.mark.parametrize("dialect", ["jhu", "timm"])
@pytest.mark.parametrize("out_dim", [0, 1])
def test_standardized_weight(dialect, out_dim, backend):
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.01

    def call(t, backend):
        return ops.standardize_weight(t[0], dialect=dialect, out_dim=out_dim, backend=backend)

    cases.assert_as_good(call, [weight], backend, torch.randn(6, 4, 3, 3))
    assert torch.autograd.gradcheck(lambda w: call([w], backend), weight.double().requires_grad_())


def test_a_constant_weight_has_no_gradient(backend):
    weight = torch.full((2, 3, 1, 1), 0.5, requires_grad=True)
    ops.standardize_weight(weight, backend=backend)[0, 0].sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "activation", "kept"),
    [
        (cases.frn, "TLU", "x"),
        (cases.frn, None, "x"),
        (partial(cases.group_norm, 2), "TLU", "x"),
        (partial(cases.group_norm, 2), None, "x"),
        (cases.frozen, "TLU", "y"),
        (cases.frozen, None, ""),
        (cases.join, "TLU", "y"),
    ],
)
def test_keeps_one_buffer_for_backward(call, activation, kept, backend):
    tensors = cases.inputs((2, 8, 40, 40), torch.float32, activation=activation)
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    x = tensors[0]
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        y = call(activation)(tensors, backend)
    large = {t.data_ptr() for t in seen if t.numel() >= x.numel()}
    assert large == {{"x": x, "y": y}[name].data_ptr() for name in kept}
    small = sum(t.numel() for t in seen if t.numel() < x.numel())
    assert small <= 2 * 2 * 8 + 4 * 8  # statistics per (n, c), and the parameters


def test_second_derivatives_are_refused(backend):
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    y = ops.frn_tlu(x, None, None, eps=1e-6, backend=backend)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NormdetError, match="backend='reference'"):
        gradient.sum().backward()


def test_choices_that_do_not_exist():
    x = torch.randn(2, 4, 3, 3)
    with pytest.raises(NormdetError, match="backend 'fast' is not one of 'auto'"):
        ops.frn_tlu(x, None, None, eps=1e-6, backend="fast")
    with pytest.raises(NormdetError, match="without a tau"):
        ops.frn_tlu(x, None, None, eps=1e-6, activation="TLU")
    with pytest.raises(NormdetError, match="'GELU' is not"):
        ops.act(x, activation="GELU")
    with pytest.raises(NormdetError, match="4 channels do not divide into 3 groups"):
        ops.group_norm_act(x, 3, None, None, eps=1e-5)
    with pytest.raises(NormdetError, match="CUDA"):
        ops.frn_tlu(x, None, None, eps=1e-6, backend="triton")
    with pytest.raises(NormdetError, match="shape"):
        ops.frn_tlu(x[0, 0, 0], None, None, eps=1e-6)


def test_same_results_from_any_number_of_threads():
    x, weight, bias, tau = cases.inputs((2, 32, 40, 41), torch.float32)
    dy = torch.randn_like(x)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(cases.run(cases.frn("TLU"), [x, weight, bias, tau], "auto", dy))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_wide_keeps_double():
    assert reference.wide(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert reference.wide(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_without_a_compiler_plain_torch_serves(monkeypatch):
    monkeypatch.setattr(library.cpp, "available", lambda: False)
    x = torch.randn(2, 4, 3, 3)
    y = ops.frn_tlu(x, None, None, eps=1e-6)
    torch.testing.assert_close(y, ops.frn_tlu(x, None, None, eps=1e-6, backend="reference"))
    with pytest.raises(NormdetError, match="compiler"):
        ops.frn_tlu(x, None, None, eps=1e-6, backend="cpp")
