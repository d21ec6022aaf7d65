"""Ignored pixels are neither object nor background: in RPN, box head, RetinaNet and evaluation."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

import normdet
from normdet.data import build_mapper
from normdet.data.ignored import PartlyIgnored
from normdet.evaluation.coco import Evaluator
from normdet.modeling.ignored import in_ignored

SIZE = 64


def targets(ignored=None, boxes=((4, 4, 20, 20),)):
    one = Instances((SIZE, SIZE))
    one.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    one.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    return one if ignored is None else PartlyIgnored.of(one, ignored)


def right_half():
    ignored = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    ignored[:, SIZE // 2 :] = True
    return ignored


def test_shares_are_those_of_counting():
    generator = torch.Generator().manual_seed(0)
    ignored = torch.rand(SIZE, SIZE, generator=generator) < 0.5
    corners = torch.randint(-9, SIZE + 9, (200, 2, 2), generator=generator)
    boxes = torch.cat([corners.min(1).values, corners.max(1).values], dim=1).float()
    found = in_ignored(boxes, targets(ignored))
    for box, one in zip(boxes.int().clamp(0, SIZE).tolist(), found.tolist(), strict=True):
        inside = ignored[box[1] : box[3], box[0] : box[2]]
        assert one == (inside.sum().item() > 0.5 * max(inside.numel(), 1))
    assert in_ignored(boxes, targets()) is None


@pytest.fixture
def cfg():
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 1
    normdet.keys.use_normdet_parts(cfg)
    return cfg


def test_no_anchor_is_negative_there(cfg):
    rpn = build_model(cfg).proposal_generator
    features = [torch.zeros(1, 16, SIZE // s, SIZE // s) for s in (4, 8, 16, 32, 64)]
    anchors = rpn.anchor_generator(features)
    boxes = Boxes.cat(anchors).tensor
    rpn.batch_size_per_image = 10**6
    (plain,), _ = rpn.label_and_sample_anchors(anchors, [targets()])
    (open_,), _ = rpn.label_and_sample_anchors(anchors, [targets(right_half())])
    there = in_ignored(boxes, targets(right_half()))
    assert ((plain == 0) & there).any() and not ((open_ == 0) & there).any()
    assert torch.equal(plain[~there], open_[~there])
    assert torch.equal(plain == 1, open_ == 1)


def test_no_proposal_is_background_there(cfg):
    heads = build_model(cfg).roi_heads
    proposals = Instances((SIZE, SIZE))
    proposals.proposal_boxes = Boxes(torch.tensor(
        [[4, 4, 20, 20], [5, 40, 20, 60], [40, 5, 60, 20], [44, 40, 60, 60.0]]))  # fmt: skip
    proposals.objectness_logits = torch.zeros(4)
    with EventStorage():
        (plain,) = heads.label_and_sample_proposals([proposals], [targets()])
        (open_,) = heads.label_and_sample_proposals([proposals], [targets(right_half())])
    assert (plain.proposal_boxes.tensor[:, 0] >= 40).sum() == 2
    assert (open_.proposal_boxes.tensor[:, 0] >= 40).sum() == 0
    # An object there is one still.
    boxes = ((40, 5, 60, 20),)
    with EventStorage():
        (found,) = heads.label_and_sample_proposals([proposals], [targets(right_half(), boxes)])
    assert (found.gt_classes == 0).sum() == 2  # the proposal and the truth itself


def test_retinanet_has_no_background_there(cfg):
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    normdet.keys.use_normdet_parts(cfg)
    model = build_model(cfg)
    features = [torch.zeros(1, 16, -(-SIZE // s), -(-SIZE // s)) for s in (8, 16, 32, 64, 128)]
    anchors = model.anchor_generator(features)
    there = in_ignored(Boxes.cat(anchors).tensor, targets(right_half()))
    (plain,), _ = model.label_anchors(anchors, [targets()])
    (open_,), _ = model.label_anchors(anchors, [targets(right_half())])
    assert ((plain == 1) & there).any() and not ((open_ == 1) & there).any()
    assert torch.equal(plain[~there], open_[~there])


def test_the_mapper_turns_what_is_ignored_with_the_image(cfg, tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((40, 60), np.uint8)
    mask[:, 45:] = 1
    crowd = {"bbox": [0, 0, 6, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1}
    one = {"bbox": [20, 20, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {
        "file_name": str(tmp_path / "a.png"), "height": 40, "width": 60,
        "annotations": [one, crowd], "ignore": mask_util.encode(np.asfortranarray(mask)),
    }  # fmt: skip
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (80,), "none"
    example = build_mapper(cfg, True)(record)
    ignored = example["instances"].to("cpu").ignored
    assert ignored.shape == (80, 120) and len(example["instances"]) == 1
    mask[:4, :6] = 1
    assert torch.equal(ignored, torch.as_tensor(mask.repeat(2, 0).repeat(2, 1) > 0))
    cfg.INPUT.IGNORE_CROWDS = False
    del record["ignore"]
    assert not isinstance(build_mapper(cfg, True)(record)["instances"], PartlyIgnored)


def test_evaluation_counts_no_detection_there_and_knows_the_users_ids(tmp_path):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, 32:] = 1
    truth = {"bbox": [4, 4, 16, 16], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": "a.png", "height": SIZE, "width": SIZE, "image_id": "slide 7",
              "annotations": [truth]}  # fmt: skip
    results = {}
    for name, extra in (
        ("plain", {}), ("open", {"ignore": mask_util.encode(np.asfortranarray(mask))}),
    ):  # fmt: skip
        evaluator = Evaluator([record | extra], ["cell"], [31], tasks=["bbox"],
                              output_dir=str(tmp_path))  # fmt: skip
        evaluator.reset()
        found = Instances((SIZE, SIZE))
        found.pred_boxes = Boxes(torch.tensor([[40, 40, 60, 60.0], [4, 4, 20, 20.0]]))
        found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
        evaluator.process([record], [{"instances": found}])
        results[name] = evaluator.evaluate()["bbox"]["AP"]
    assert results["open"] == pytest.approx(100) and results["plain"] == pytest.approx(50, abs=1)
    written = (tmp_path / "coco_instances_results.json").read_text()
    assert '"image_id": "slide 7"' in written and '"category_id": 31' in written
