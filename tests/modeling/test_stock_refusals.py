"""A stock builder that meets one of our names says which builder to use, and trains nothing."""

import pytest
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.roi_heads import build_box_head, build_mask_head

from normdet import NormdetError, add_normdet_config
from normdet.keys import check_config, put

SHAPE = ShapeSpec(channels=16, height=7, width=7)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_normdet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    return cfg


@pytest.mark.parametrize("norm", ["FRN+TLU", "GN+WS", "IN", "typo"])
@pytest.mark.parametrize(
    ("key", "build", "builder"),
    [
        ("MODEL.RESNETS.NORM", build_backbone, "build_normdet_resnet_backbone"),
        ("MODEL.ROI_BOX_HEAD.NORM", lambda cfg: build_box_head(cfg, SHAPE), "NormdetFastRCNN"),
        ("MODEL.ROI_MASK_HEAD.NORM", lambda cfg: build_mask_head(cfg, SHAPE), "NormdetMaskRCNN"),
    ],
)
def test_stock_builders_name_ours(cfg, key, build, builder, norm):
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    put(cfg, key, norm)
    with pytest.raises(NormdetError, match=builder) as error:
        build(cfg)
    assert key in str(error.value) and repr(norm) in str(error.value)


def test_stock_fpn_names_ours(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3"]
    cfg.MODEL.FPN.NORM = "FRN+TLU"
    with pytest.raises(NormdetError, match="build_normdet_resnet_fpn_backbone"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("key", "builder"),
    [
        ("MODEL.NORMDET.RPN_HEAD_NORM", "NormdetStandardRPNHead"),
        ("MODEL.NORMDET.BOX_FC_NORM", "NormdetFastRCNNConvFCHead"),
        ("MODEL.NORMDET.MASK_DECONV_NORM", "NormdetMaskRCNNConvUpsampleHead"),
        ("MODEL.NORMDET.KEYPOINT_HEAD_NORM", "NormdetKRCNNConvDeconvUpsampleHead"),
    ],
)
def test_a_key_that_a_stock_part_would_ignore_is_refused(cfg, key, builder):
    put(cfg, key, "GN")
    with pytest.raises(NormdetError, match=builder) as error:
        check_config(cfg)
    assert key in str(error.value)


def test_stock_norms_still_build(cfg):
    cfg.MODEL.RESNETS.NORM = "GN"
    assert build_backbone(cfg).stem.conv1.norm.num_groups == 32
