"""Every layer against its formula in float64: values, gradients, training and test time."""

import pytest
import torch
from torch import nn

from normdet import layers
from normdet.options import METHODS, names, parse
from tests.layers import reference

SHAPES = {0: (3, 8), 1: (3, 8, 7), 2: (2, 8, 5, 3), 3: (2, 8, 2, 3, 4)}
CASES = [
    (norm, dims)
    for norm in (
        "FrozenBN", "AffineBN", "BN", "SyncBN", "GN", "LN", "IN", "FRN",
        "BRN", "BIN", "SwitchNorm", "EvalNorm", "InPlaceABN", "MeanOnlyBN",
        "RMSGN", "AN", "EvoNormS0", "EvoNormB0", "MABN",
        "AttentiveBN",
    )
    for dims in SHAPES
    if dims or not METHODS[norm].needs_space
]  # fmt: skip
PARAMS = {
    "GN": {"NUM_GROUPS": 4},
    "RMSGN": {"NUM_GROUPS": 4},
    "AN": {"NUM_GROUPS": 4, "MIXTURE": 3},
    "AttentiveBN": {"MIXTURE": 3},
    "EvoNormS0": {"NUM_GROUPS": 4},
    "MABN": {"WARMUP": 10**9},  # each batch by itself: tests/layers/test_mabn.py has the rest
}
ACTIVATIONS = ("", "ReLU", "TLU")


def can(norm: str, activation: str) -> bool:
    return activation not in METHODS[norm].excludes


def build(norm: str, dims: int, activation: str, channels: int = 8) -> nn.Module:
    """A norm in float64 whose parameters are away from where they start."""
    text = norm + ("+TLU" if activation == "TLU" else "")
    module = parse(text, PARAMS).build_norm(channels, activate=activation != "", dims=dims)
    torch.manual_seed(1)
    for name, value in module.named_parameters():
        value.data = torch.randn_like(value) * 0.3 + (name == "weight")
    for value in module.buffers():
        if value is not None and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    if norm == "BRN":
        module.steps.fill_(15_000)  # half open
    if norm == "EvalNorm":
        module.blend.fill_(0.3)
    return module.double()


def expected(module: nn.Module, norm: str, x: torch.Tensor) -> torch.Tensor:
    if norm in ("AN", "AttentiveBN"):
        over_gn = norm == "AN"
        x_hat = reference.group_norm(x, 4, module.eps) if over_gn else batch_normalized(module, x)
        y = reference.mixture(x, x_hat, dict(module.named_parameters()), module.eps)
        return reference.activated(y, module.activation, module.tau)
    if norm == "FRN":
        learned = 0.0 if module.eps_l is None else module.eps_l.abs()
        x_hat = reference.frn(x, module.eps + learned)
    elif norm in ("GN", "LN", "IN"):
        x_hat = reference.group_norm(x, {"GN": 4, "LN": 1, "IN": x.shape[1]}[norm], module.eps)
    elif norm == "RMSGN":
        x_hat = reference.group_rms(x, 4, module.eps)
    elif norm == "EvoNormS0":
        x_hat = reference.evonorm_s0(x, module.v, 4, module.eps)
    elif norm == "EvoNormB0":
        var = reference.batch_var(x) if module.training else module.running_var
        x_hat = reference.evonorm_b0(x, module.v, var, module.eps)
    elif norm == "MABN" and module.training:
        centred = x - reference.per_channel(module.running_mean, x)
        square = reference.batch_var(torch.cat([centred, -centred]))  # about 0
        x_hat = reference.fixed_batch_norm(centred, 0 * square, square, module.eps)
    elif norm == "BIN":
        batch_part = batch_normalized(module, x)
        x_hat = reference.batch_instance_norm(x, module.rho, module.eps, batch_part)
    elif norm == "SwitchNorm":
        running = None if module.training else (module.running_mean, module.running_var)
        weights = module.mean_weight, module.var_weight
        x_hat = reference.switch_norm(x, *weights, module.eps, running)
    elif norm == "BRN" and module.training:
        running = module.running_mean, module.running_var
        x_hat = reference.batch_renorm(x, *running, module.eps, r_max=2.0, d_max=2.5)
    elif norm == "EvalNorm" and not module.training:
        running = module.running_mean, module.running_var
        x_hat = reference.eval_norm(x, module.blend.item(), *running, module.eps)
    elif norm == "MeanOnlyBN":
        fixed = x - reference.per_channel(module.running_mean, x)
        x_hat = reference.mean_only_batch_norm(x) if module.training else fixed
    else:
        x_hat = batch_normalized(module, x)
    weight = module.weight
    if norm == "InPlaceABN":
        weight = weight.abs() + module.eps
    y = reference.affine(x_hat, weight, module.bias)
    return reference.activated(y, module.activation, module.tau)


def batch_normalized(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    if not module.training or not module.batch_statistics:
        return reference.fixed_batch_norm(x, module.running_mean, module.running_var, module.eps)
    return reference.batch_norm(x, module.eps)


@pytest.mark.parametrize(
    ("norm", "dims", "activation"),
    [(*case, act) for case in CASES for act in ACTIVATIONS if can(case[0], act)],
)
@pytest.mark.parametrize("training", [True, False])
def test_value_and_gradients(norm, dims, activation, training):
    module = build(norm, dims, activation).train(training)
    torch.manual_seed(0)
    x = torch.randn(SHAPES[dims], dtype=torch.float64, requires_grad=True)
    parameters = list(module.parameters())
    weight = torch.randn(SHAPES[dims], dtype=torch.float64)
    want = expected(module, norm, x)
    want_grads = torch.autograd.grad((want * weight).sum(), [x, *parameters])
    y = module(x)
    grads = torch.autograd.grad((y * weight).sum(), [x, *parameters])
    torch.testing.assert_close(y, want)
    for got, ref in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, ref)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "dims", "activation"),
    [
        (norm, dims, activation)
        for norm, dims in CASES
        for activation in ACTIVATIONS
        if dims in (0, 2) and can(norm, activation)
    ],
)
def test_gradcheck(norm, dims, activation):
    module = build(norm, dims, activation, channels=4)
    if norm == "BRN":
        module.steps.zero_()  # r and d, constants to the gradient, are not to finite differences
    shape = (SHAPES[dims][0], 4, *SHAPES[dims][2:])
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_frn_is_a_scaled_unit_vector():
    """An independent oracle: without affine and epsilon, `x / |x| * sqrt(H W)`."""
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    y = layers.FilterResponseNorm2d(3, eps=0.0).double()(x)
    unit = nn.functional.normalize(x.flatten(2), dim=2) * (6 * 7) ** 0.5
    torch.testing.assert_close(y, unit.view_as(x))


def test_tlu_ties_go_to_tau():
    tlu = layers.TLU(1)
    x = torch.tensor([[-1.0], [0.0], [1.0]], requires_grad=True)
    tlu(x).sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.0, 1.0]
    assert tlu.tau.grad.tolist() == [2.0]


@pytest.mark.parametrize("activation", [None, "ReLU", "TLU"])
def test_the_join_of_a_block(activation):
    join = layers.AddAct(4, activation).double()
    if activation == "TLU":
        join.tau.data.normal_()
    x, y = (torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    want = reference.activated(x + y, activation, join.tau)
    torch.testing.assert_close(join(x, y), want)
    assert torch.autograd.gradcheck(join, (x, y))


def test_batch_norm_learns_its_running_averages_as_torch_does():
    ours, torchs = layers.BatchNorm2d(4), nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(3, 4, 5, 5) * 2 + 1
        torch.testing.assert_close(ours(x), torchs(x))
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_frozen_statistics_follow_the_batch_norm_they_come_from():
    norm = layers.BatchNorm2d(4, activation="TLU")
    norm(torch.randn(3, 4, 5, 5) * 2 + 1)
    frozen = layers.freeze_batch_norm(nn.Sequential(norm))
    assert isinstance(frozen[0], layers.FrozenBatchNorm2d)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert frozen[0].state_dict().keys() == norm.state_dict().keys()


def test_folded_weights_load_into_a_frozen_norm():
    frozen = layers.FrozenBatchNorm2d(2)
    frozen.load_state_dict({"weight": torch.tensor([2.0, 3.0]), "bias": torch.tensor([1.0, 0.0])})
    y = frozen(torch.ones(1, 2, 1, 1)).flatten()
    torch.testing.assert_close(y, torch.tensor([3.0, 3.0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", names("norm"))
def test_every_norm_has_its_formula_tested(norm):
    assert norm in {case[0] for case in CASES}, f"write {norm}'s formula into this file"


def test_frn_is_timms_in_its_range():
    """Below float16's limits timm's FRN+TLU, whose epsilon is fixed at 1e-5, computes the same."""
    timm = pytest.importorskip("timm.layers")
    theirs = timm.FilterResponseNormTlu2d(6)
    ours = layers.FilterResponseNorm2d(6, eps=theirs.eps, activation="TLU")
    for name in ("weight", "bias", "tau"):
        getattr(theirs, name).data.normal_()
        getattr(ours, name).data.copy_(getattr(theirs, name).data)
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))
