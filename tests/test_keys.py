"""The flag fills the keys of its parts and leaves the others."""

import pytest
from detectron2.config import get_cfg

import normdet
from normdet.errors import NormdetError
from normdet.keys import USUAL_PARTS, get, norm_option
from normdet.options import METHODS
from normdet.parts import NORMED


@pytest.fixture
def cfg():
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    return cfg


def norms(cfg) -> dict[str, str]:
    return {name: get(cfg, part.key) for name, part in NORMED.items()}


def test_the_flag_fills_every_usual_part(cfg):
    normdet.set_norm(cfg, "FRN+TLU")
    filled = {part for part, norm in norms(cfg).items() if norm == "FRN+TLU"}
    assert filled == set(USUAL_PARTS) - {"sem_seg_head"}  # which no Mask R-CNN has
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    normdet.set_norm(cfg, "FRN+TLU")
    assert cfg.MODEL.SEM_SEG_HEAD.NORM == "FRN+TLU"
    normdet.set_norm(cfg, "FrozenBN")
    assert cfg.MODEL.SEM_SEG_HEAD.NORM == "GN"  # detectron2's own
    assert str(norm_option(cfg, "res5_head")) == "FrozenBN"  # as the backbone


def test_the_flag_names_our_builders(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    normdet.set_norm(cfg, "GN")
    assert cfg.MODEL.BACKBONE.NAME == "build_normdet_resnet_fpn_backbone"
    assert cfg.MODEL.ROI_BOX_HEAD.NAME == "NormdetFastRCNNConvFCHead"
    assert cfg.MODEL.RPN.HEAD_NAME == "NormdetStandardRPNHead"


def test_frozen_bn_freezes_the_backbone_and_leaves_the_heads_bare(cfg):
    normdet.set_norm(cfg, "GN")
    normdet.set_norm(cfg, "FrozenBN")
    assert norms(cfg)["backbone"] == "FrozenBN"
    heads = set(USUAL_PARTS) - {"backbone", "sem_seg_head"}
    assert {norms(cfg)[part] for part in heads} == {""}


def test_chosen_parts_alone(cfg):
    before = norms(cfg)
    normdet.set_norm(cfg, "GN", ["rpn_head", "box_fc"])
    changed = {part for part, norm in norms(cfg).items() if norm != before[part]}
    assert changed == {"rpn_head", "box_fc"}
    normdet.set_norm(cfg, "GN", ["all"])
    assert {norm for part, norm in norms(cfg).items() if not NORMED[part].of} == {"GN"}
    assert {str(norm_option(cfg, part)) for part in NORMED} == {"GN"}


@pytest.mark.parametrize(
    ("text", "parts", "says"),
    [("FRN_TLU", None, "did you mean 'FRN\\+TLU'"), ("GN", ["neck"], "unknown part 'neck'")],
)
def test_bad_flags_change_nothing(cfg, text, parts, says):
    before = cfg.dump()
    with pytest.raises(NormdetError, match=says):
        normdet.set_norm(cfg, text, parts)
    assert cfg.dump() == before


def test_every_parameter_of_every_method_has_its_key(cfg):
    for method in METHODS.values():
        for name, value in method.params.items():
            assert cfg.MODEL.NORMDET[method.name][name] == value
    cfg.MODEL.NORMDET.GN.NUM_GROUPS = 8
    cfg.MODEL.RESNETS.NORM = "GN"
    assert norm_option(cfg, "backbone").build_norm(64).num_groups == 8


def test_adding_the_keys_twice_keeps_what_was_set(cfg):
    cfg.MODEL.NORMDET.GN.NUM_GROUPS = 8
    normdet.add_normdet_config(cfg)
    assert cfg.MODEL.NORMDET.GN.NUM_GROUPS == 8


def test_a_config_without_our_keys_says_what_to_call():
    with pytest.raises(NormdetError, match="add_normdet_config"):
        norm_option(get_cfg(), "backbone")
