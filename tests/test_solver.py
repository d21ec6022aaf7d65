"""No norm's parameter decays unless asked, under any option; the groups are listed."""

import pytest
import torch
from detectron2.layers import batch_norm
from detectron2.modeling import build_model
from torch import nn

from normdet.config import load_config
from normdet.keys import BUILDERS, get, normdet_name, put
from normdet.options import METHODS, parse
from normdet.parts import NORMED
from normdet.solver import build_optimizer, norm_parameters, optimizer_groups
from tests.covering import covering_options

NORM_NAMES = ("weight", "bias", "tau", "eps_l")


def model_and_config(text: str, *opts):
    cfg = load_config("quickstart/base.yaml", ["MODEL.DEVICE", "cpu", *opts])
    for part in NORMED:
        norm = parse(text).norm
        if part != "box_fc" or not norm or not METHODS[norm].needs_space:
            put(cfg, NORMED[part].key, text)
    return build_model(cfg), cfg


def decay_by_name(model: nn.Module, cfg) -> dict[str, float]:
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: g["weight_decay"] for g in optimizer_groups(cfg, model) for p in g["params"]}


@pytest.mark.slow
@pytest.mark.parametrize("text", covering_options())
def test_no_norm_decays_and_everything_else_does(text):
    model, cfg = model_and_config(text)
    decays = decay_by_name(model, cfg)
    assert decays.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, decay in decays.items():
        # The weight of a fully connected layer under WS is inside a parametrization.
        layer = name.removesuffix(".parametrizations.weight.original")
        owner = model.get_submodule(layer if layer != name else name.rpartition(".")[0])
        is_conv = isinstance(owner, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
        assert decay == (cfg.SOLVER.WEIGHT_DECAY if is_conv else 0.0), name
    settings = {(g["lr"], g["weight_decay"]) for g in optimizer_groups(cfg, model)}
    assert len(optimizer_groups(cfg, model)) == len(settings)


def test_the_gain_of_weight_norm_does_not_decay():
    model, cfg = model_and_config("GN+WN")
    decays = decay_by_name(model, cfg)
    stem = "backbone.bottom_up.stem.conv1"
    assert decays[f"{stem}.weight"] == 1e-4 and decays[f"{stem}.reweight.g"] == 0.0


def test_the_scalars_of_fixup_train_at_a_tenth():
    model, cfg = model_and_config("Fixup")
    names = {p: name for name, p in model.named_parameters()}
    groups = optimizer_groups(cfg, model)
    settings = {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    block = "backbone.bottom_up.res3.0"
    base = cfg.SOLVER.BASE_LR
    for name in ("entry.offset", "conv1.norm.shift", "conv2.norm.scale", "conv2.norm.shift"):
        assert settings[f"{block}.{name}"] == (pytest.approx(base / 10), 0.0)
    assert settings[f"{block}.conv1.weight"] == (base, 1e-4)


def test_the_groups_of_frn_tlu():
    model, cfg = model_and_config("FRN+TLU")
    decays = decay_by_name(model, cfg)
    stem = "backbone.bottom_up.stem.conv1"
    assert decays[f"{stem}.weight"] == 1e-4
    assert [decays[f"{stem}.norm.{n}"] for n in ("weight", "bias", "tau")] == [0.0] * 3
    assert decays["backbone.bottom_up.res2.0.join.tau"] == 0.0
    fc = "roi_heads.box_head.fc_norm1"
    assert [decays[f"{fc}.{n}"] for n in NORM_NAMES] == [0.0] * 4


def test_norms_decay_when_asked():
    model, cfg = model_and_config("FRN+TLU", "SOLVER.WEIGHT_DECAY_NORM", 5e-5)
    decays = decay_by_name(model, cfg)
    assert {decays[n] for n, p in model.named_parameters() if p in set(norm_parameters(model))} == {
        5e-5
    }


def test_stock_groups_under_a_stock_norm():
    """With a norm that detectron2 knows, the parameters decay as under its own optimizer."""
    from detectron2.solver import build_optimizer as stock_build_optimizer

    cfg = load_config("quickstart/gn.yaml", ["MODEL.DEVICE", "cpu", "SOLVER.BIAS_LR_FACTOR", 2.0])
    stock_cfg = cfg.clone()
    for key, names in BUILDERS.items():
        for name in names:
            if get(cfg, key) == normdet_name(name):
                put(stock_cfg, key, name)
    settings = []
    for config, build in ((cfg, build_optimizer), (stock_cfg, stock_build_optimizer)):
        model = build_model(config)
        names = {p: name for name, p in model.named_parameters()}
        groups = build(config, model).param_groups
        settings.append(
            {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
        )
    assert settings[0] == settings[1]


def test_detectron2s_own_channel_norm_is_a_norm_too():
    if not hasattr(batch_norm, "LayerNorm"):
        pytest.skip("this detectron2 has no channel-wise LayerNorm")
    model = nn.Sequential(batch_norm.LayerNorm(4), nn.Conv2d(4, 4, 1))
    assert set(norm_parameters(model)) == set(model[0].parameters())


ADAPTIVE = ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "adaptive", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.02)


@pytest.mark.slow
def test_adaptive_clipping_bounds_each_unit_by_its_weight():
    model, cfg = model_and_config("GN", *ADAPTIVE)
    optimizer = build_optimizer(cfg, model)
    torch.manual_seed(0)
    grads = {}
    for name, p in model.named_parameters():
        p.grad = torch.randn_like(p) * (1e-6 if "rpn_head" in name else 1.0)
        grads[name] = p.grad.clone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        transposed = name.endswith("mask_head.deconv.weight")
        weight, grad, moved = (
            (t.movedim(1, 0) if transposed else t) for t in (before[name], grads[name], p.grad)
        )
        units = range(len(weight)) if weight.dim() > 1 else [...]
        for unit in units:
            w, g = weight[unit].norm().item(), grad[unit].norm().item()
            share = 1.0 if "predictor" in name else min(1.0, 0.02 * max(w, 1e-3) / g)
            torch.testing.assert_close(moved[unit], grad[unit] * share, rtol=1e-4, atol=1e-9)


def test_clipping_is_detectron2s():
    model, cfg = model_and_config("FRN+TLU")
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD) and "Clip" in type(optimizer).__name__
