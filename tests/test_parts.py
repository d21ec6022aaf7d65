"""The table of parts: the part of a tensor, and a stage's norm beside the backbone's."""

import pytest
from detectron2.config import get_cfg

import normdet
from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.keys import check_config, get, norm_option, stage_options
from normdet.parts import NORMED, PARTS, belongs, owner


@pytest.mark.parametrize(
    "name, part",
    [
        ("backbone.bottom_up.stem.conv1.weight", "stem"),
        ("backbone.res4.11.conv2.norm.bias", "res4"),
        ("res2.0.conv1.weight", "res2"),
        ("module.backbone.bottom_up.res5.0.conv1.norm", "res5"),
        ("backbone.bottom_up.blocks.3.norm.weight", "backbone"),
        ("backbone.bottom_up", "backbone"),
        ("backbone.fpn_lateral2.norm.weight", "fpn"),
        ("fpn_output3.weight", "fpn"),
        ("backbone.top_block.p6.weight", "fpn_top"),
        ("proposal_generator.rpn_head.conv.weight", "rpn_head"),
        ("roi_heads.res5.0.conv1.weight", "res5_head"),
        ("roi_heads.box_head.conv1.norm.weight", "box_head"),
        ("roi_heads.box_head.fc_norm1.weight", "box_fc"),
        ("roi_heads.box_predictor.cls_score.bias", "box_predictor"),
        ("roi_heads.mask_head.mask_fcn4.weight", "mask_head"),
        ("roi_heads.mask_head.deconv_norm.weight", "mask_deconv"),
        ("roi_heads.mask_head.predictor.weight", "mask_predictor"),
        ("head.cls_subnet.0.weight", "retinanet_head"),
        ("pixel_mean", "detector"),
    ],
)
def test_a_tensor_is_the_part_s_with_the_longest_prefix(name, part):
    assert owner(name).name == part
    assert belongs(name, PARTS[part])


def test_the_backbone_has_its_stages_tensors_too():
    assert belongs("backbone.bottom_up.res3.0.conv1.weight", PARTS["backbone"])
    assert not belongs("roi_heads.res5.0.conv1.weight", PARTS["backbone"])
    assert not belongs("backbone.fpn_lateral2.weight", PARTS["backbone"])


def test_every_norm_has_a_key_and_a_builder_of_its_own():
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    assert len({part.key for part in NORMED.values()}) == len(NORMED)
    for part in NORMED.values():
        assert isinstance(get(cfg, part.key), str), part.name
        assert isinstance(get(cfg, part.builder), str), part.name


def test_a_stage_has_the_backbone_s_norm_until_it_is_named():
    cfg = load_config("quickstart/base.yaml", norm="FrozenBN")
    assert {str(option) for option in stage_options(cfg).values()} == {"FrozenBN"}
    normdet.set_norm(cfg, "GN", ["res4", "res5"])
    named = {name for name, option in stage_options(cfg).items() if str(option) == "GN"}
    assert named == {"res4", "res5"} and str(norm_option(cfg, "backbone")) == "FrozenBN"


def test_a_norm_for_the_whole_backbone_takes_its_stages_along():
    cfg = load_config("quickstart/base.yaml", norm="GN", norm_parts=["res5"])
    normdet.set_norm(cfg, "FRN+TLU")
    assert {str(option) for option in stage_options(cfg).values()} == {"FRN+TLU"}


def test_a_stage_s_own_norm_is_refused_where_a_stock_builder_would_drop_it():
    cfg = load_config("quickstart/base.yaml", ["MODEL.NORMDET.RES4_NORM", "GN"])
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    with pytest.raises(NormdetError, match=r"MODEL\.NORMDET\.RES4_NORM is 'GN', which"):
        check_config(cfg)


def test_each_box_head_of_a_cascade_is_one():
    assert owner("roi_heads.box_head.2.conv1.norm.weight") is PARTS["box_head"]
    assert owner("module.roi_heads.box_head.0.fc1.weight") is PARTS["box_fc"]
    assert owner("roi_heads.box_predictor.1.cls_score.bias") is PARTS["box_predictor"]
