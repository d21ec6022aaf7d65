"""Weight methods: formulas, every kind of layer, loading, resuming, half precision, copies."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from normdet.errors import NormdetError
from normdet.layers import (
    centralize,
    reparametrize,
    spectral_norm,
    standardize,
    standardize_adaptively,
    standardize_scaled,
    weight_norm,
)
from normdet.layers.reparametrized import learned_weight, linear, used_weight
from normdet.layers.weight_norm import WeightNorm
from normdet.options import parse
from tests.layers import reference
from tests.workers import run_workers

METHODS = {
    "WN": weight_norm, "SpectralNorm": spectral_norm, "AWS": standardize_adaptively,
    "WS": standardize, "WC": centralize, "SWS": standardize_scaled,
}  # fmt: skip
# What becomes of a plain weight's scale under these is told by the norm behind.
RESCALING = ("SpectralNorm", "WS", "SWS")
LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 7, 7)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), (3, 4, 5, 5)),
    "deconv": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (3, 4, 3, 3)),
    "fc": (lambda: nn.Linear(4, 6), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (3, 4, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3)),
}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Under WC and SWS a plain weight loses its means: `test_value_and_gradients` has what is left.
KEEPING = [method for method in METHODS if method not in ("WC", "SWS")]
every_method = pytest.mark.parametrize("method", METHODS)
every_layer = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(method: str, kind: str, dtype=torch.float64) -> tuple[nn.Module, torch.Tensor]:
    """A layer whose method has left its start, and an input."""
    make, shape = LAYERS[kind]
    layer = METHODS[method](make().to(dtype))
    x = torch.randn(shape, dtype=dtype)
    layer.train()(x)
    for value in layer.parameters():
        value.data += 0.1 * torch.randn_like(value)
    return layer, x


def weight_in_use(layer: nn.Module, method: str) -> torch.Tensor:
    out_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    beside = layer.reweight
    if method == "WN":
        return reference.weight_norm(layer.weight, beside.g, out_dim)
    if method == "AWS":
        return reference.adaptive_weight_standardization(
            layer.weight, beside.gain, beside.shift, beside.eps, out_dim
        )
    if method == "WS":
        return reference.weight_standardization(layer.weight, "jhu", out_dim)
    if method == "SWS":
        standard = reference.weight_standardization(layer.weight, "timm", out_dim)
        fan_in = layer.weight.numel() // layer.weight.shape[out_dim]
        return beside.gain * standard / fan_in**0.5
    if method == "WC":
        return reference.weight_centralization(layer.weight, out_dim)
    return reference.spectral_norm(layer.weight, out_dim)


def plain(layer: nn.Module, kind: str, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The layer as torch has it, with a given weight."""
    values = {"weight": weight, "bias": layer.bias}
    return torch.func.functional_call(LAYERS[kind][0](), values, x)


@pytest.mark.slow
@every_layer
@every_method
def test_value_and_gradients(method, kind):
    layer, x = build(method, kind)
    if method == "SpectralNorm":
        layer.reweight.power.n_power_iterations = 4000  # until it has converged
    x.requires_grad_()
    parameters = list(layer.parameters())
    for training in (True, False):
        y, want = layer.train(training)(x), plain(layer, kind, weight_in_use(layer, method), x)
        torch.testing.assert_close(y, want)
        grads = torch.autograd.grad(y.square().sum(), [x, *parameters])
        want_grads = torch.autograd.grad(want.square().sum(), [x, *parameters])
        for got, ref in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(got, ref)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "deconv", "fc"])
@every_method
def test_gradcheck(method, kind):
    layer, x = build(method, kind)
    layer.eval()  # a training step of the power iteration changes the function
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x[:2].requires_grad_(), *parameters.values()))


@pytest.mark.parametrize("kind", ["conv", "fc"])
def test_weight_norm_is_torchs(kind):
    ours, x = build("WN", kind)
    theirs = parametrizations.weight_norm(LAYERS[kind][0]().double())
    weight = theirs.parametrizations.weight
    weight.original0.data, weight.original1.data = ours.reweight.g.data, ours.weight.data
    theirs.bias.data = ours.bias.data
    torch.testing.assert_close(ours(x), theirs(x))


@every_layer
def test_spectral_norm_is_torchs_through_training(kind):
    make, shape = LAYERS[kind]
    start = make().double()
    ours = spectral_norm(copy.deepcopy(start))
    theirs = parametrizations.spectral_norm(copy.deepcopy(start))
    theirs.parametrizations.weight[0].load_state_dict(ours.reweight.power.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    for layer in (ours, theirs):
        sgd = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(3):
            sgd.zero_grad()
            layer(x).square().mean().backward()
            sgd.step()
        layer.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    assert not torch.equal(ours.weight, start.weight)


def test_spectral_norm_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    layer = nn.Linear(4, 4)
    want = torch.rand(1)
    torch.manual_seed(1)
    spectral_norm(nn.Linear(4, 4)).load_state_dict(layer.state_dict())
    torch.manual_seed(1)
    nn.Linear(4, 4)
    assert torch.equal(torch.rand(1), want)


@every_layer
def test_data_dependent_start(kind):
    """1602.07868, section 3: pre-activations of the first batch have mean 0 and variance 1."""
    make, shape = LAYERS[kind]
    layer = weight_norm(make().double())
    v = layer.weight.detach().clone()
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    y = layer(x).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(y.mean(0), torch.zeros(6).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(6).double())
    assert torch.equal(layer.weight, v)

    g, bias = layer.reweight.g.detach().clone(), layer.bias.detach().clone()
    layer(torch.randn_like(x) * 7)
    assert torch.equal(layer.reweight.g, g) and torch.equal(layer.bias, bias)


def test_a_start_waits_for_data_that_varies():
    layer = weight_norm(nn.Conv2d(2, 3, 1))
    g = layer.reweight.g.detach().clone()
    layer(torch.zeros(0, 2, 4, 4)).sum().backward()
    layer(torch.ones(1, 2, 1, 1))
    layer.eval()(torch.randn(2, 2, 4, 4))
    assert torch.equal(layer.reweight.g, g) and layer.reweight.starting
    layer.train()(torch.ones(2, 2, 4, 4))
    assert torch.equal(layer.reweight.g, g), "a channel that does not vary has no scale to take"


def test_a_start_without_a_bias_leaves_the_mean_to_the_norm():
    option = parse("GN+WN")
    conv = nn.Conv2d(4, 6, 3, bias=False)
    conv.norm, conv.activation = option.build_norm(6, activate=True), None
    conv = option.build_weight(conv)
    x = torch.randn(3, 4, 7, 7) + 2
    y = conv(x)
    inner = linear(conv, x, conv.reweight(conv.weight), None)
    torch.testing.assert_close(inner.var((0, 2, 3), correction=0), torch.ones(6))
    assert torch.equal(y, conv.norm(inner)) and (y >= 0).all()


def test_a_frozen_layer_does_not_start():
    layer = weight_norm(nn.Conv2d(4, 6, 3)).requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    layer.train()(torch.randn(2, 4, 5, 5))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_the_power_iteration_of_a_frozen_layer_rests():
    layer = spectral_norm(nn.Conv2d(4, 6, 3)).requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    layer.train()(torch.randn(2, 4, 5, 5))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@every_layer
@pytest.mark.parametrize("method", KEEPING)
def test_a_plain_weight_loads_and_keeps_its_function(method, kind):
    make, shape = LAYERS[kind]
    trained, layer = make().double(), METHODS[method](make().double())
    trained.weight.data += 0.2  # filters with means
    assert not layer.load_state_dict(trained.state_dict()).missing_keys
    x = torch.randn(shape, dtype=torch.float64)
    want = trained(x)
    if method == "SpectralNorm":  # up to the weight's scale, which a norm takes away
        sigma = torch.linalg.svdvals(weight_matrix(trained))[0]
        want = plain(trained, kind, trained.weight / sigma, x)
        torch.testing.assert_close(layer.eval()(x), want, rtol=0.05, atol=0.05)
        return
    if method == "WS":
        want = plain(trained, kind, weight_in_use(layer, method), x)
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), want)


@pytest.mark.parametrize("kind", ["conv", "deconv", "fc"])
def test_a_plain_weight_keeps_its_deviations_under_scaled_standardization(kind):
    make, shape = LAYERS[kind]
    trained, layer = make().double(), standardize_scaled(make().double())
    assert not layer.load_state_dict(trained.state_dict()).missing_keys
    out_dim = 1 if kind == "deconv" else 0
    centred = reference.weight_centralization(trained.weight, out_dim)
    x = torch.randn(shape, dtype=torch.float64)
    want = plain(trained, kind, centred, x)
    torch.testing.assert_close(layer(x), want, rtol=1e-9, atol=1e-9)


def test_scaled_standardization_is_timms():
    std_conv = pytest.importorskip("timm.layers.std_conv")
    theirs = std_conv.ScaledStdConv2d(4, 6, 3, padding=1, bias=True).double()
    theirs.gain.data.normal_()
    ours = standardize_scaled(nn.Conv2d(4, 6, 3, padding=1).double())
    state = {"weight": theirs.weight, "bias": theirs.bias, "reweight.gain": theirs.gain}
    ours.load_state_dict(state)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def weight_matrix(layer: nn.Module) -> torch.Tensor:
    out_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    return layer.weight.movedim(out_dim, 0).flatten(1)


@every_layer
@pytest.mark.parametrize("method", KEEPING)
def test_the_function_is_unchanged_where_the_method_is_built(method, kind):
    make, shape = LAYERS[kind]
    layer = make().double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    want = layer(x).detach()
    built = METHODS[method](layer)
    assert built is layer
    if method not in RESCALING:
        torch.testing.assert_close(built(x), want)


@every_layer
@every_method
def test_round_trip_and_resume(method, kind, tmp_path):
    """Training that is interrupted and resumed from a file goes on as without the interruption."""
    make, shape = LAYERS[kind]

    def steps(layer, sgd, seeds):
        for k in seeds:
            torch.manual_seed(k)
            sgd.zero_grad()
            layer(torch.randn(shape)).square().mean().backward()
            sgd.step()

    torch.manual_seed(1)
    straight = METHODS[method](make())
    sgd = torch.optim.SGD(straight.parameters(), lr=0.05, momentum=0.9)
    steps(straight, sgd, range(2))
    state = {"model": straight.state_dict(), "sgd": sgd.state_dict()}
    torch.save(state, tmp_path / "m.pth")
    steps(straight, sgd, range(2, 4))

    torch.manual_seed(9)
    resumed = METHODS[method](make())
    sgd = torch.optim.SGD(resumed.parameters(), lr=0.05, momentum=0.9)
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    resumed.load_state_dict(state["model"])
    sgd.load_state_dict(state["sgd"])
    steps(resumed, sgd, range(2, 4))
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_the_state_of_an_own_checkpoint_is_not_fitted_again():
    layer, _ = build("AWS", "conv", torch.float32)
    other = standardize_adaptively(LAYERS["conv"][0]())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.reweight.gain, layer.reweight.gain)
    deviation = layer.reweight.fit(layer.weight)["gain"]
    assert not torch.allclose(other.reweight.gain, deviation)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
def test_under_autocast_the_weight_is_computed_wide(method, dtype, device):
    layer, x = build(method, "conv", torch.float32)
    layer, x = layer.to(device), x.to(device)
    layer.weight.data *= 1000  # squares leave float16's range
    layer.eval()
    want = layer.reweight(layer.weight)
    with torch.autocast(device, dtype):
        used = layer.reweight(layer.weight)
        y = layer(x)
        assert layer.train()(x).dtype == dtype
    assert torch.equal(used, want) and y.dtype == dtype
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_a_start_under_autocast():
    layer = weight_norm(nn.Conv2d(4, 6, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(4, 4, 9, 9) * 300).float()
    torch.testing.assert_close(y.var((0, 2, 3)), torch.ones(6), rtol=0.05, atol=0)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters(method, dtype):
    layer, x = build(method, "conv", torch.float32)
    want = layer.eval()(x)
    y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), want, rtol=0.05, atol=0.05)


@every_layer
@every_method
def test_deep_copies_are_independent(method, kind):
    layer, x = build(method, kind)
    other = copy.deepcopy(layer.eval())
    assert torch.equal(other(x), layer(x))
    want = layer(x)
    for value in other.state_dict().values():
        value.mul_(-2).add_(0.5)
    assert torch.equal(layer(x), want) and not torch.allclose(other(x), want)


@every_method
def test_empty_batches_keep_the_graph_connected(method):
    layer, x = build(method, "conv", torch.float32)
    y = layer(x[:0].requires_grad_())
    y.sum().backward()
    assert len(y) == 0
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@every_method
def test_filters_of_zeros_stay_finite(method):
    layer = nn.Conv2d(4, 6, 3)
    layer.weight.data[0] = 0
    layer = METHODS[method](layer).eval()
    layer(torch.randn(2, 4, 5, 5)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


@every_method
def test_norms_activations_parameters_and_keys_stay(method):
    conv = nn.Conv2d(4, 6, 3, bias=False)
    conv.norm, conv.activation = nn.GroupNorm(2, 6), nn.ReLU()
    weight = conv.weight
    new = METHODS[method](conv)
    assert new.weight is weight
    assert {"weight", "norm.weight", "norm.bias"} <= new.state_dict().keys()
    added = new.state_dict().keys() - {"weight", "norm.weight", "norm.bias"}
    assert all(key.startswith("reweight.") for key in added)
    assert (new(torch.randn(2, 4, 5, 5)) >= 0).all()


@pytest.mark.parametrize(
    "module", [nn.ConvTranspose3d(2, 2, 1), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Identity()]
)
def test_other_layers_are_refused(module):
    with pytest.raises(NormdetError, match="WeightNorm has no form for"):
        weight_norm(module)


def test_a_layer_has_one_method():
    with pytest.raises(NormdetError, match="has no form for ReparametrizedConv2d"):
        reparametrize(standardize_adaptively(nn.Conv2d(4, 4, 1)), WeightNorm)


@pytest.mark.parametrize("method", ["AWS", "WS", "SpectralNorm"])
def test_layers_with_a_forward_of_their_own(method):
    """Such as deformable convolutions, in which `weight` is the weight in use."""
    plain = nn.ConvTranspose3d(4, 6, 2).double()
    layer = METHODS[method](copy.deepcopy(plain)).eval()
    assert torch.equal(learned_weight(layer), plain.weight)
    x = torch.randn(2, 4, 3, 3, 3, dtype=torch.float64)
    used = used_weight(layer)
    want = torch.func.functional_call(plain, {"weight": used}, x)
    torch.testing.assert_close(layer(x), want)
    assert torch.allclose(used, plain.weight) == (method == "AWS")
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer(x), want, rtol=0.05, atol=0.05)
    with pytest.raises(NormdetError, match="has no form for"):
        weight_norm(nn.ConvTranspose3d(4, 6, 2))


def test_parameters_reach_the_methods():
    aws = parse("GN+AWS", {"AWS": {"EPS": 0.5}}).build_weight(nn.Conv2d(4, 4, 3))
    assert aws.reweight.eps == 0.5
    sn = parse("GN+SpectralNorm", {"SpectralNorm": {"ITERATIONS": 3}})
    assert sn.build_weight(nn.Linear(4, 4)).reweight.power.n_power_iterations == 3


SHARES = {
    "equal": [2, 2],
    "unequal": [3, 1],
    "empty": [4, 0],
}


def _start(x: torch.Tensor) -> dict:
    torch.manual_seed(3)
    layer = weight_norm(nn.Conv2d(4, 6, 3).double())
    layer(x)
    assert not layer.reweight.starting
    return layer.state_dict()


def _batch(shares: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(shares), 4, 5, 5, generator=generator, dtype=torch.float64) * 2 + 1


def _worker(rank: int) -> dict:
    return {name: _start(_batch(n).split(n)[rank]) for name, n in SHARES.items()}


@pytest.mark.slow
def test_workers_start_alike_and_as_one():
    results = run_workers(_worker, 2)
    for name, shares in SHARES.items():
        for key, value in _start(_batch(shares)).items():
            first, second = (result[name][key] for result in results)
            assert torch.equal(first, second), f"workers disagree on {key}"
            torch.testing.assert_close(first, value)
