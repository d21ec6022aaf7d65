"""Conversion between norms is exact if the norm allows it, and else nearer with each rung."""

import pytest
import torch
from detectron2.modeling import build_model

from normdet.convert import Settings, convert
from normdet.convert.views import Views
from normdet.errors import NormdetError
from normdet.layers import PerExampleNorm, leave_stored
from normdet.weights import Checkpointer, load_model

SIZE = 96


def errors(done, rung=None):
    found = done.achieved[rung or list(done.achieved)[-1]]
    return {name: value for name, value in found.items() if name.startswith("error")}


def worst(done, rung=None):
    return max(errors(done, rung).values())


def mean(done, rung=None):
    found = errors(done, rung)
    return sum(found.values()) / len(found)


def run(cfg, to, pictures, rung="closed", **settings):
    return convert(cfg, Settings(to, rung, size=SIZE, batch=4, **settings), pictures)


@pytest.mark.slow
@pytest.mark.parametrize(
    "to",
    [
        "BN", "SyncBN", "FrozenBN", "EvalNorm", "BRN", "MABN", "BIN", "BN+AWS", "BN+WN",
        "MeanOnlyBN+WN", "BN+SpectralNorm", "BN+TLU",
    ],
)  # fmt: skip
def test_a_norm_with_running_averages_keeps_the_function(to, small_cfg, pictures):
    assert worst(run(small_cfg(), to, pictures)) < 2e-3


def test_switch_norm_is_nearly_bn_at_first(small_cfg, pictures):
    assert worst(run(small_cfg(), "SwitchNorm", pictures)) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("to", ["GN", "LN", "IN", "FRN+TLU", "FRN", "GN+WS", "FRN+TLU+AWS"])
def test_stored_moments_keep_the_function_and_leave_nothing(to, small_cfg, pictures, tmp_path):
    """At t = 0 it is the original, also with scaled, negated and reordered channels."""
    done = run(small_cfg(), to, pictures, "annealed")
    if not to.endswith("+WS"):  # standardized filters cannot be the original's
        assert worst(done) < 2e-3
    norms = [m for m in done.converted.modules() if isinstance(m, PerExampleNorm)]
    assert norms and all(norm.stored is not None for norm in norms)
    done.save(tmp_path / "annealed.pth")
    fresh = build_model(done.cfg).eval()
    checkpointer = Checkpointer(fresh, cfg=done.cfg)
    checkpointer.load(str(tmp_path / "annealed.pth"), checkpointables=[])
    assert not checkpointer.report.missing and not checkpointer.report.unexpected
    images = torch.stack(pictures[:2]).float()
    loaded = fresh.state_dict().keys()
    regions = Views(done.original, done.loaded).regions(images)
    with torch.no_grad():
        ours, theirs = (Views(m, loaded)(images, regions) for m in (fresh, done.converted))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    assert leave_stored(fresh, 1.0) == len(norms)
    assert fresh.state_dict().keys() == build_model(done.cfg).state_dict().keys()
    plain = run(small_cfg(), to, pictures, "calibrated")
    with torch.no_grad():
        ours, theirs = (Views(m, loaded)(images, regions) for m in (fresh, plain.converted))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["GN", "FRN+TLU"])
def test_a_larger_epsilon_brings_the_result_nearer(to, small_cfg, pictures):
    found = [mean(run(small_cfg(), to, pictures, "calibrated", keep=k)) for k in (0.0, 0.5, 0.9)]
    assert found == sorted(found, reverse=True) and found[2] < 0.85 * found[0]


def test_frn_keeps_the_function_as_epsilon_grows(small_cfg, pictures):
    assert worst(run(small_cfg(), "FRN+TLU", pictures, keep=0.9999)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("to", ["GN", "LN", "FRN+TLU"])
def test_the_closed_form_is_nearer_than_copies(to, small_cfg, pictures):
    done = run(small_cfg(), to, pictures)
    naive = build_model(done.cfg).eval()
    state = done.original.state_dict()
    naive.load_state_dict({k: v for k, v in state.items() if k in naive.state_dict()}, strict=False)
    from normdet.convert.crops import centre_crops
    from normdet.convert.measure import compare

    views = Views(done.original, done.loaded), Views(naive, done.loaded)
    copied = compare(*views, centre_crops(pictures[3::4], SIZE))
    copied = [value for name, value in copied.items() if name.startswith("error")]
    assert mean(done) < 0.8 * sum(copied) / len(copied)


@pytest.mark.slow
def test_gn_becomes_frn_with_images(small_cfg, pictures, tmp_path):
    gn = run(small_cfg(), "GN", pictures)
    gn.save(tmp_path / "gn.pth")
    cfg = gn.cfg.clone()
    cfg.MODEL.WEIGHTS = str(tmp_path / "gn.pth")
    with pytest.raises(NormdetError, match="takes images"):
        run(cfg, "FRN+TLU", ())
    done = run(cfg, "FRN+TLU", pictures, "calibrated")
    assert done.loaded and mean(done) < 1.0


def test_a_part_without_a_norm_gets_one_with_images(small_cfg, pictures):
    cfg = small_cfg("MODEL.FPN.NORM", "", "MODEL.ROI_BOX_HEAD.NORM", "")
    original, _ = load_model(cfg)
    assert original.backbone.fpn_output4.norm is None
    done = run(cfg, "GN", pictures, "calibrated", parts=["fpn"], keep=0.9)
    assert done.converted.backbone.fpn_output4.norm.num_groups == 8
    assert errors(done)["error res5"] == 0
    assert mean(done) < 0.3


@pytest.mark.slow
def test_folded_statistics_take_images(small_cfg, small_weights, pictures, tmp_path):
    from normdet.weights import load_file, save_file

    state = load_file(small_weights)["model"]
    for key in [k for k in state if k.startswith("backbone.bottom_up") and "running_mean" in k]:
        layer = key.removesuffix("running_mean")
        scale = state[f"{layer}weight"] * (state[f"{layer}running_var"] + 1e-5).rsqrt()
        state[f"{layer}bias"] -= state[key] * scale
        state[f"{layer}weight"] = scale
        state[key] = torch.zeros_like(scale)
        state[f"{layer}running_var"] = torch.ones_like(scale) - 1e-5
    save_file({"model": state}, tmp_path / "folded.pth")
    cfg = small_cfg("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.WEIGHTS", str(tmp_path / "folded.pth"))
    with pytest.raises(NormdetError, match="folded into its affine.*--images"):
        run(cfg, "GN", (), parts=["backbone"])
    folded = run(cfg, "GN", pictures, "calibrated", parts=["backbone"])
    assert mean(folded) == pytest.approx(
        mean(run(small_cfg(), "GN", pictures, "calibrated", parts=["backbone"])), rel=0.25
    )


@pytest.mark.slow
def test_standardized_filters_lose_less_with_images(small_cfg, pictures):
    closed, calibrated = (run(small_cfg(), "GN+WS", pictures, r) for r in ("closed", "calibrated"))
    early = [errors(done)["error res2"] for done in (closed, calibrated)]
    assert early[1] < 0.8 * early[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "settings", "sentence"),
    [
        ("Fixup", {}, "no norms"),
        ("AN", {}, "AttentiveNorm has no closed form"),
        ("AttentiveBN", {}, "AttentiveBatchNorm has no closed form"),
        ("EvoNormS0", {}, "EvoNormS0 has no closed form"),
        ("EvoNormB0", {}, "EvoNormB0 has no closed form"),
        ("BN", {"keep": 0.5}, "--keep is for GN, LN, IN, FRN"),
        ("GN", {"keep": 1.0}, "below 1"),
        ("SwitchNorm", {"rung": "annealed"}, "--rung annealed is for"),
        ("GN", {"rung": "distilled"}, "takes images"),
        ("GN", {"parts": ["neck"]}, "unknown part 'neck'"),
        ("GNN", {}, "did you mean"),
    ],
)
def test_a_conversion_that_cannot_be_done_is_refused(to, settings, sentence, small_cfg):
    with pytest.raises(NormdetError, match=sentence):
        convert(small_cfg(), Settings(to, **settings, size=SIZE))


def test_a_size_that_would_be_padded_is_refused(small_cfg, pictures):
    with pytest.raises(NormdetError, match="of 100 pixels: this model takes multiples of 32"):
        convert(small_cfg(), Settings("GN", size=100), pictures)
