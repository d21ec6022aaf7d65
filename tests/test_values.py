"""Wrong values are refused before anything is built, in a sentence that names the key."""

import re

import pytest
from detectron2.config import get_cfg

from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.keys import add_normdet_config
from normdet.values import all_rules, check_values

WRONG = [
    ("SOLVER.WARMUP_METHOD", "x"),
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
    ("SOLVER.MAX_ITER", -5),
    ("SOLVER.BASE_LR", -0.1),
    ("SOLVER.BASE_LR", float("nan")),
    ("SOLVER.MOMENTUM", 1.5),
    ("SOLVER.STEPS", (100, 50)),
    ("SOLVER.STEPS", ("a",)),
    ("SOLVER.GAMMA", 0.0),
    ("SOLVER.CHECKPOINT_PERIOD", 0),
    ("SOLVER.WEIGHT_DECAY", -1e-4),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "both"),
    ("SOLVER.HANG_SECONDS", -1),
    ("INPUT.MIN_SIZE_TRAIN", ()),
    ("INPUT.MIN_SIZE_TRAIN", (-800,)),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "random"),
    ("INPUT.FORMAT", "RGBA"),
    ("INPUT.MASK_FORMAT", "rle"),
    ("INPUT.RANDOM_FLIP", "both"),
    ("INPUT.CROP.TYPE", "half"),
    ("DATALOADER.NUM_WORKERS", -1),
    ("DATALOADER.SAMPLER_TRAIN", "Random"),
    ("TEST.EVAL_PERIOD", -1),
    ("TEST.DETECTIONS_PER_IMAGE", 0),
    ("MODEL.DEVICE", "gpu"),
    ("MODEL.RESNETS.DEPTH", 51),
    ("MODEL.RESNETS.OUT_FEATURES", ("res6",)),
    ("MODEL.PIXEL_STD", (1.0, 0.0, 1.0)),
    ("MODEL.PIXEL_MEAN", (1.0, "b", 2.0)),
    ("MODEL.PIXEL_MEAN", (1.0, 2.0)),
    ("MODEL.FPN.FUSE_TYPE", "max"),
    ("MODEL.ROI_HEADS.NUM_CLASSES", 0),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 5.0),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", -0.5),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "Align"),
    ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l1"),
    ("MODEL.RPN.HEAD_NAME", "NoHead"),
    ("MODEL.META_ARCHITECTURE", "YOLO"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", ((0,),)),
    ("MODEL.NORMDET.GN.NUM_GROUPS", 0),
    ("MODEL.NORMDET.BN.EPS", -1.0),
    ("MODEL.NORMDET.START.KEEP", 1.0),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: str(value))
def test_a_wrong_value_is_named_with_what_it_must_be(key, value):
    with pytest.raises(NormdetError, match=rf"{re.escape(key)} .*must be") as refused:
        load_config("quickstart/gn.yaml", [key, value])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.MAX_ITER", "many"), ("SOLVER.BASE_LR", (1,)), ("NO.KEY", 1)]
)
def test_wrong_types_and_keys_are_refused(key, value):
    with pytest.raises(NormdetError, match="in the trailing KEY VALUE pairs"):
        load_config("quickstart/gn.yaml", [key, value])


def test_several_are_told_at_once_and_defaults_are_right():
    with pytest.raises(NormdetError, match=r"SOLVER.MAX_ITER is 0.*SOLVER.GAMMA is -1"):
        load_config("quickstart/gn.yaml", ["SOLVER.MAX_ITER", 0, "SOLVER.GAMMA", -1.0])
    cfg = get_cfg()
    check_values(cfg)
    add_normdet_config(cfg)
    check_values(cfg)


# Keys that came after detectron2 v0.6.
LATER = ("SOLVER.BASE_LR_END", "SOLVER.NUM_DECAYS")


def test_every_rule_is_of_a_key_that_there_is():
    cfg = get_cfg()
    add_normdet_config(cfg)
    for key, rule in all_rules():
        if key in LATER and key.rpartition(".")[2] not in cfg.SOLVER:
            continue
        node = cfg
        for name in key.split("."):
            assert name in node, key
            node = node[name]
        assert not rule.holds(object()), key
