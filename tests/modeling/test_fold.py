"""`MODEL.NORMDET.FOLD_FIXED`: same keys, outputs and gradients, with nothing more kept."""

from functools import partial

import pytest
import torch
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import build_backbone

from normdet.config import config_file, load_config
from normdet.export import deployable
from normdet.lab.bench.measure import held_bytes
from normdet.layers import NormLayer
from normdet.modeling.fold import FoldingConv2d, fold_fixed
from normdet.options import parse
from tests.surgery.networks import spread_statistics

FIXED = ["FrozenBN", "FrozenBN+TLU", "AffineBN", "BN", "SyncBN", "BRN", "MABN+TLU"]
# Computes what BN does, but for its blend with the example.
BLENDED = "EvalNorm"


def unit(norm, folds, dtype=torch.float64):
    """A convolution and its norm, in test mode and away from their start."""
    torch.manual_seed(0)
    option = parse(norm)
    conv = Conv2d(3, 6, 3, bias=False, norm=option.build_norm(6, activate=True))
    if conv.norm.tau is not None:
        torch.nn.init.uniform_(conv.norm.tau, -0.5, 0.2)
    module = spread_statistics(torch.nn.Sequential(conv)).to(dtype)
    return fold_fixed(module, folds).eval()


def outcome(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return y.detach(), x.grad, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
@pytest.mark.parametrize("norm", [*FIXED, BLENDED])
def test_same_outputs_and_gradients(norm, dtype, tolerance):
    x = torch.randn(2, 3, 9, 8, dtype=dtype)
    plain, folding = (unit(norm, folds, dtype) for folds in (False, True))
    assert type(folding[0]) is FoldingConv2d and list(plain.state_dict()) == list(
        folding.state_dict()
    )
    for expected, found in zip(outcome(plain, x), outcome(folding, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("norm", ["FrozenBN", "AffineBN"])
def test_a_frozen_weight_lets_gradients_pass(norm):
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    plain, folding = (unit(norm, folds) for folds in (False, True))
    for model in (plain, folding):
        model[0].weight.requires_grad = False
    for expected, found in zip(outcome(plain, x), outcome(folding, x), strict=True):
        torch.testing.assert_close(found, expected)


def test_under_amp_as_exact_as_the_norm_by_itself():
    x = torch.randn(2, 3, 9, 8)
    exact = outcome(unit("AffineBN", False, torch.float32), x)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(unit("AffineBN", True, torch.float32), x)
    for name, gradient in exact[2].items():
        error = (found[2][name] - gradient).norm() / gradient.norm()
        assert found[2][name].dtype is torch.float32 and error < 0.03, name


def test_gradcheck_through_the_folded_weight():
    model = unit("AffineBN", True)
    conv, x = model[0], torch.randn(1, 3, 5, 5, dtype=torch.float64)

    def run(weight, scale, shift):
        state = {"weight": weight, "norm.weight": scale, "norm.bias": shift}
        return torch.func.functional_call(conv, state, x)

    inputs = [p.detach().clone().requires_grad_() for p in
              (conv.weight, conv.norm.weight, conv.norm.bias)]  # fmt: skip
    assert torch.autograd.gradcheck(run, inputs)


def test_a_norm_that_learns_or_is_watched_is_not_folded():
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    plain, folding = unit("BN", False).train(), unit("BN", True).train()
    for expected, found in zip(outcome(plain, x), outcome(folding, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    seen = []
    folding.eval()[0].norm.register_forward_hook(lambda norm, inputs, y: seen.append(y))
    torch.testing.assert_close(folding(x), seen[0])


def test_norms_of_an_example_and_weight_methods_stay():
    for text in ("GN", "BN+WS", "BIN"):
        option = parse(text)
        conv = option.build_weight(Conv2d(3, 32, 3, norm=option.build_norm(32)))
        before = type(conv)
        assert type(fold_fixed(torch.nn.Sequential(conv), True)[0]) is before is not FoldingConv2d


def test_an_empty_batch_passes():
    y = unit("FrozenBN", True)(torch.randn(0, 3, 9, 8, dtype=torch.float64))
    assert y.shape == (0, 6, 7, 6)


def backbone(norm, folds, freeze_at=0):
    options = [
        "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.FPN.OUT_CHANNELS", "32",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.BACKBONE.FREEZE_AT", str(freeze_at),
        "MODEL.NORMDET.FOLD_FIXED", str(folds),
    ]  # fmt: skip
    cfg = load_config(config_file("coco/mask_rcnn_R_50_FPN_1x.yaml"), options, norm)
    torch.manual_seed(0)
    model = build_backbone(cfg, ShapeSpec(channels=3)).train()
    return spread_statistics(model)


def total(model, x):
    return sum(y.square().mean() for y in model(x).values())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["FrozenBN", "AffineBN"])
def test_a_whole_backbone_trains_the_same(norm):
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    plain, folding = (backbone(norm, folds).double() for folds in (False, True))
    assert list(plain.state_dict()) == list(folding.state_dict())
    losses = [total(model, x) for model in (plain, folding)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(plain.named_parameters(), folding.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_a_trained_affine_keeps_less_and_a_fixed_one_no_more():
    x = torch.randn(1, 3, 64, 64)
    kept = {
        (norm, folds): held_bytes(partial(backbone(norm, folds), x), "cpu")
        for norm in ("FrozenBN", "AffineBN")
        for folds in (False, True)
    }
    assert kept["AffineBN", True] < 0.8 * kept["AffineBN", False]
    assert kept["FrozenBN", True] < 1.1 * kept["FrozenBN", False]


def test_deployed_it_is_plain():
    model = backbone("FrozenBN", True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(x), deployable(model)(x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, NormLayer) and hasattr(m, "running_mean")
                   for m in deployable(model).modules())  # fmt: skip


def test_it_is_scripted_as_the_plain_convolution():
    model = unit("FrozenBN", True, torch.float32)
    x = torch.randn(1, 3, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=1e-4, atol=1e-5)
