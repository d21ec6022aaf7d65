"""mmdetection's detectors: equal outputs of every part."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from normdet.errors import NormdetError
from normdet.weights import Checkpointer, import_weights
from tests.weights.networks import (
    CLASSES,
    WIDTH,
    MMDetection,
    WSConv2d,
    adopted,
    meta,
    tolerance,
    trained,
)


@pytest.mark.slow
@pytest.mark.parametrize(("ws", "rgb"), [(False, False), (True, True)])
def test_mmdetection_mask_rcnn(ws, rgb, tmp_path):
    torch.manual_seed(0)
    theirs = trained(MMDetection(WSConv2d if ws else nn.Conv2d))
    path = str(tmp_path / "epoch_24.pth")
    torch.save({"state_dict": theirs.published(), "meta": meta(ws, rgb)}, path)
    imported = import_weights({"model": theirs.published(), "meta": meta(ws, rgb)}, path)
    cfg = adopted(imported)
    assert not imported.left_out and not imported.facts.assumed
    option = "GN+WS" if ws else "GN"
    for node in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        assert node.NORM == option
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == CLASSES
    assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC) == (4, 1)
    assert cfg.INPUT.FORMAT == ("RGB" if rgb else "BGR")
    ours = build_model(cfg).eval()
    checkpointer = Checkpointer(ours, cfg=cfg)
    checkpointer.load(path)
    report = checkpointer.report
    assert set(report.matched) == set(ours.state_dict()) and not report.warnings
    assert not report.missing and not report.unexpected

    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        want, got = theirs.pyramid(x), ours.backbone(x)
        for theirs_map, ours_map in zip(want, got.values(), strict=True):
            torch.testing.assert_close(ours_map, theirs_map, **tolerance(theirs_map))
        head = ours.proposal_generator.rpn_head(list(got.values()))
        for one, other in zip(theirs.proposals(want), head, strict=True):
            for a, b in zip(one, other, strict=True):
                torch.testing.assert_close(b, a, **tolerance(a))
        rois = torch.randn(3, WIDTH, 7, 7)
        heads = ours.roi_heads
        for a, b in zip(theirs.boxes(rois), heads.box_predictor(heads.box_head(rois)), strict=True):
            torch.testing.assert_close(b, a, **tolerance(a))
        rois = torch.randn(3, WIDTH, 14, 14)
        torch.testing.assert_close(
            heads.mask_head.layers(rois), theirs.masks(rois), **tolerance(theirs.masks(rois))
        )
    # A part under another norm is noticed, not only the backbone.
    cfg.MODEL.FPN.NORM = "GN" if ws else "GN+WS"
    with pytest.raises(NormdetError, match=r"MODEL\.FPN\.NORM .* set MODEL\.FPN\.NORM GN"):
        Checkpointer(build_model(cfg), cfg=cfg).load(path)


def test_anchors_and_boxes_are_mmdetection_s():
    """Order, place and size of anchors, and what a box's deltas are divided by."""
    imported = import_weights({"model": MMDetection(nn.Conv2d).published()}, "w.pth")
    model = build_model(adopted(imported)).eval()
    ratios = torch.tensor([0.5, 1.0, 2.0])
    for stride, ours in zip(
        (4, 8, 16, 32, 64), model.proposal_generator.anchor_generator.cell_anchors, strict=True
    ):
        heights, widths = stride * 8 * ratios.sqrt(), stride * 8 / ratios.sqrt()
        theirs = torch.stack([-widths, -heights, widths, heights], 1) / 2
        torch.testing.assert_close(ours, theirs)
    assert model.proposal_generator.anchor_generator.offset == 0
    box, delta = torch.tensor([[10.0, 20.0, 50.0, 100.0]]), torch.tensor([[0.5, -1.0, 2.0, 1.0]])
    dx, dy, dw, dh = (delta * torch.tensor([0.1, 0.1, 0.2, 0.2]))[0]
    x, y, w, h = 30 + 40 * dx, 60 + 80 * dy, 40 * dw.exp(), 80 * dh.exp()
    want = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])[None]
    got = model.roi_heads.box_predictor.box2box_transform.apply_deltas(delta, box)
    torch.testing.assert_close(got, want)
    assert model.roi_heads.box_pooler.level_poolers[0].aligned


def test_parts_that_mmdetection_computes_differently_are_left_out():
    state = MMDetection(nn.Conv2d).published()
    first = {key.removeprefix("roi_head."): value for key, value in state.items()}
    imported = import_weights(first, "w.pth")
    assert not any(key.startswith("roi_heads.") for key in imported.model)
    assert "background" in imported.left_out["bbox_head.fc_cls.weight"]
    assert "backbone.fpn_output5.norm.bias" in imported.model

    softmax = state | {"rpn_head.rpn_cls.bias": torch.zeros(6)}
    imported = import_weights(softmax, "w.pth")
    assert not any("rpn_head" in key for key in imported.model)
    assert "two scores" in imported.left_out["rpn_head.rpn_cls.weight"]

    one_stage = {key: value for key, value in state.items() if key.startswith("backbone.")}
    one_stage["neck.lateral_convs.0.conv.weight"] = torch.ones(WIDTH, 128, 1, 1)
    imported = import_weights(one_stage, "w.pth")
    assert set(imported.left_out) == {"neck.lateral_convs.0.conv.weight"}


@pytest.mark.parametrize(
    "text",
    [
        "x = [" * 5000,
        f"model = dict(a=1)\nimg_norm_cfg = dict(mean=[1{'0' * 400}], std=[0], to_rgb=1)",
        "model = __import__('os').system('touch pwned')",
        "model = (",
        "\0",
        "model = 3",
    ],
)
def test_a_config_in_a_file_is_read_and_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = MMDetection(nn.Conv2d).published()
    imported = import_weights({"model": state, "meta": {"config": text}}, "w.pth")
    assert imported.facts.shown["MODEL.RESNETS.NORM"] == "GN"
    assert not (tmp_path / "pwned").exists()
