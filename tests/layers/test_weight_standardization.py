"""Weight standardization: its two dialects, its modules, and its folding at test time."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from normdet.errors import NormdetError
from normdet.layers import WeightStandardization, WSConv2d, standardize
from normdet.layers.reparametrized import learned_weight, present_name, used_weight
from normdet.ops import standardize_weight
from tests.layers import reference


@pytest.mark.parametrize("dialect", ["jhu", "timm"])
@pytest.mark.parametrize(("groups", "kernel"), [(1, 3), (2, 3), (1, 1)])
def test_convolution_against_the_formula(dialect, groups, kernel):
    conv = WSConv2d(4, 6, kernel, groups=groups, padding=1, dialect=dialect).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    weight = reference.weight_standardization(conv.weight, dialect)
    want = nn.functional.conv2d(x, weight, conv.bias, padding=1, groups=groups)
    torch.testing.assert_close(conv(x), want)
    grad = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    want_grad = torch.autograd.grad(want.square().sum(), conv.weight)
    torch.testing.assert_close(grad, want_grad)


def test_timm_dialect_is_timms():
    timm = pytest.importorskip("timm.layers")
    theirs = timm.StdConv2d(4, 6, 3, padding=1)
    ours = WSConv2d(4, 6, 3, padding=1, bias=False, dialect="timm")
    ours.weight.data = theirs.weight.data
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))


class Own(nn.Module):
    """A layer of an unknown kind, whose forward reads its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))

    def forward(self, x, stride=1):
        return nn.functional.conv2d(x, self.weight, stride=stride)


OTHERS = {
    "deconv": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 3, 3), 1),
    "deconv3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2), (2, 4, 3, 3, 3), 1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 5), 0),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5), 0),
    "fc": (lambda: nn.Linear(4, 6), (2, 4), 0),
    "own": (Own, (2, 4, 5, 5), 0),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers(kind):
    make, shape, out_dim = OTHERS[kind]
    plain, x = make().double(), torch.randn(shape, dtype=torch.float64)
    layer = standardize(copy.deepcopy(plain))
    assert list(layer.state_dict()) == list(plain.state_dict())
    standard = reference.weight_standardization(plain.weight, "jhu", out_dim)
    torch.testing.assert_close(used_weight(layer), standard)
    want = torch.func.functional_call(plain, {"weight": standard}, x)
    torch.testing.assert_close(layer(x), want)
    got = torch.autograd.grad(layer(x).square().sum(), learned_weight(layer))
    torch.testing.assert_close(got, torch.autograd.grad(want.square().sum(), plain.weight))
    other = copy.deepcopy(layer).eval()
    learned_weight(other).data.mul_(-1)
    bias = getattr(plain, "bias", None)
    lift = 0 if bias is None else 2 * bias.view(-1, *[1] * (x.dim() - 2))
    torch.testing.assert_close(other(x), lift - want)


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_former_versions_load(kind):
    make, shape, _ = OTHERS[kind]
    former, x = make(), torch.randn(shape)
    dim = int(kind.startswith("deconv"))
    parametrize.register_parametrization(former, "weight", WeightStandardization("timm", dim))
    state = former.state_dict()
    assert "parametrizations.weight.original" in state
    present = nn.Sequential(standardize(make(), "timm"))
    present.load_state_dict({f"0.{key}": value for key, value in state.items()})
    torch.testing.assert_close(present(x), former(x))
    assert {present_name(key) for key in state} == {*present[0].state_dict()}


def test_taking_over_a_convolution_keeps_its_parameters_and_keys():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    conv.norm, conv.activation = nn.GroupNorm(2, 6), nn.ReLU()
    new = standardize(conv)
    assert new.weight is conv.weight
    assert list(new.state_dict()) == ["weight", "norm.weight", "norm.bias"]
    x = torch.randn(1, 4, 6, 6)
    weight = reference.weight_standardization(conv.weight, "jhu")
    want = conv.norm(nn.functional.conv2d(x, weight, stride=2, padding=1)).relu()
    torch.testing.assert_close(new(x), want)


def test_folded_once_at_test_time_and_anew_when_the_weight_changes(monkeypatch):
    from normdet.layers import weight_standardization as module

    calls = []
    plain = module.standardize_weight
    monkeypatch.setattr(
        module, "standardize_weight", lambda *a, **k: calls.append(1) or plain(*a, **k)
    )
    conv = WSConv2d(4, 6, 3).eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        conv.bias.zero_()
        first = conv(x)
        assert torch.equal(conv(x), first) and len(calls) == 1
        conv.weight.mul_(-1)
        torch.testing.assert_close(conv(x), -first)
        assert len(calls) == 2
    conv.train()
    conv(x).sum().backward()
    assert conv.weight.grad is not None and len(calls) == 3
    assert "weight" in conv.state_dict() and len(conv.state_dict()) == 2


@pytest.mark.parametrize(
    "use",
    [
        lambda **named: WSConv2d(3, 4, 3, **named),
        lambda **named: WeightStandardization(**named),
        lambda **named: standardize_weight(torch.ones(2, 3), **named),
    ],
)
def test_unknown_dialect_is_refused(use):
    with pytest.raises(NormdetError, match="dialect 'caffe' is not 'jhu' or 'timm'"):
        use(dialect="caffe")


def _load(conv):
    conv.load_state_dict({"weight": torch.randn_like(conv.weight)})
    return conv


def _assign(conv):
    conv.load_state_dict({"weight": torch.randn(4, 3, 3, 3)}, assign=True)
    return conv


def _replace(conv):
    conv.weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
    return conv


def _edit(conv):
    with torch.no_grad():
        conv.weight[0, 0] *= 3
    return conv


def _edit_data(conv):
    conv.weight.data[0, 0] *= 3
    return conv.eval()


def _round(conv):
    return conv.to(torch.bfloat16).to(torch.float32)


def _copy(conv):
    return _edit(copy.deepcopy(conv))


def _optimize(conv):
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.5, momentum=0.9)
    conv.train()(torch.randn(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    return conv.eval()


@pytest.mark.parametrize(
    "change", [_load, _assign, _replace, _edit, _edit_data, _round, _copy, _optimize]
)
def test_a_fold_never_outlives_its_weight(change):
    conv = WSConv2d(3, 4, 3, bias=False).eval()
    with torch.no_grad():
        conv(torch.randn(1, 3, 5, 5))  # folds
    conv = change(conv)
    with torch.no_grad():
        folded = conv.standardized_weight()
        assert conv.standardized_weight() is folded
    torch.testing.assert_close(folded, standardize_weight(conv.weight.detach()))


@pytest.mark.slow
def test_export_and_compile_standardize_in_the_graph():
    conv = WSConv2d(3, 4, 3, bias=False).eval()
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        expected = conv(x)
        program = torch.export.export(conv, (x,))
        compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(program.module()(x), expected)
        torch.testing.assert_close(compiled(x), expected)
        _edit(conv)
        torch.testing.assert_close(compiled(x), conv(x))


@pytest.mark.parametrize("dialect", ["jhu", "timm"])
@pytest.mark.parametrize("backend", ["reference", "eager", "auto"])
def test_a_filter_of_one_weight_is_zero_and_an_option_refuses_it(dialect, backend):
    weight = torch.randn(3, 1, 1, 1, requires_grad=True)
    standard = standardize_weight(weight, dialect=dialect, backend=backend)
    standard.square().sum().backward()
    assert not standard.any() and not weight.grad.any()
    with pytest.raises(NormdetError, match="one weight .*leave WS out"):
        standardize(nn.Conv2d(3, 3, 1, groups=3), dialect)


def test_a_frozen_weight_is_standardized_once(monkeypatch):
    from normdet.layers import weight_standardization as module

    calls = []
    plain = module.standardize_weight
    monkeypatch.setattr(
        module, "standardize_weight", lambda *a, **k: calls.append(1) or plain(*a, **k)
    )
    conv = WSConv2d(4, 6, 3).train().requires_grad_(False)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    first = conv(x)
    first.sum().backward()
    assert torch.equal(conv(x), first) and len(calls) == 1
    with torch.no_grad():
        conv.weight.mul_(2).add_(torch.randn_like(conv.weight))
    conv(x)
    assert len(calls) == 2
    conv.requires_grad_(True)
    conv(x)
    conv(x)
    assert len(calls) == 4
