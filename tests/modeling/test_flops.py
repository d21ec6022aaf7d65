"""Multiply-adds are detectron2's for an equal detector, and known numbers for others."""

from collections import Counter

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

import normdet
from normdet.cli import main
from normdet.options import parse

try:
    from detectron2.utils.analysis import FlopCountAnalysis

    from normdet.modeling.flops import FlopCount, flops_by_part
except ImportError:
    pytest.skip("this detectron2 counts with caffe2 alone", allow_module_level=True)

SMALL = ("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.NAME",
         "build_retinanet_resnet_fpn_backbone", "MODEL.META_ARCHITECTURE", "RetinaNet",
         "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES",
         ["res3", "res4", "res5"])  # fmt: skip
IMAGE = [{"image": torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255}]


def retinanet(norm: str, *, ours: bool) -> nn.Module:
    cfg = get_cfg()
    if ours:
        normdet.add_normdet_config(cfg)
    cfg.merge_from_list(list(SMALL))
    if ours:
        normdet.set_norm(cfg, norm)
    else:
        cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = cfg.MODEL.RETINANET.NORM = norm
        if norm == "FrozenBN":
            cfg.MODEL.FPN.NORM = cfg.MODEL.RETINANET.NORM = ""
    return build_model(cfg).eval()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["FrozenBN", "GN", "BN"])
def test_the_count_is_that_of_detectron2s_own(norm):
    stock = FlopCountAnalysis(retinanet(norm, ours=False), IMAGE)
    stock.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    want, got = stock.by_operator(), FlopCount(retinanet(norm, ours=True), IMAGE).by_operator()
    assert got["conv"] == want["conv"] > 1e9
    assert got["norm_act"] == want["group_norm"]
    assert got["point_act"] + got["batch_norm"] == want["batch_norm"]
    assert got.total() == want.total()


def test_norms_of_ours_are_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), parse("FRN+TLU").build_norm(8, activate=True),
                          parse("GN").build_norm(8)).eval()  # fmt: skip
    count = FlopCount(model, torch.rand(1, 3, 5, 7))
    assert count.by_operator() == {"conv": 5 * 7 * 24, "norm_act": 5 * 7 * 8 * (4 + 5)}
    assert not [name for name in count.unsupported_ops() if "normdet" in name]
    assert model[1].backend == "auto"


@pytest.mark.slow
def test_the_parts_add_up():
    model = retinanet("FRN+TLU", ours=True)
    rows = flops_by_part(model, IMAGE)
    assert [row.part for row in rows][-3:] == ["FPN top", "FPN", "RetinaNet head"]
    assert rows[0].part == "backbone stem" and rows[0].flops["conv"] == 32 * 48 * 64 * 3 * 49
    summed = sum((row.flops for row in rows), Counter())
    whole = FlopCount(model, IMAGE).by_operator()
    assert {k: v for k, v in summed.items() if v} == {k: v for k, v in whole.items() if v}


@pytest.mark.slow
def test_inspect_prints_them(tmp_path, capsys):
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "INPUT.MIN_SIZE_TEST", "64",
            "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]  # fmt: skip
    cfg = normdet.config.load_config("coco/retinanet_R_50_FPN_1x.yaml", opts, "FRN+TLU")
    file = tmp_path / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, file)
    flags = ["--config-file", "coco/retinanet_R_50_FPN_1x.yaml", "--norm", "FRN+TLU", "--flops"]
    assert main(["inspect", str(file), *flags, *opts]) == 0
    said = capsys.readouterr().out
    assert "multiply-adds for 64 x 85 pixels" in said and "RetinaNet head" in said
    assert "norm_act" in said and "100.0%" in said
    assert main(["inspect", str(file), "--flops"]) == 2
    assert "give --config-file too" in capsys.readouterr().err
