"""With our names in a stock config, detectron2's own trainer and predictor work."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from torch import nn

import normdet
from normdet.layers import FilterResponseNorm2d, NormLayer, WSConv2d
from normdet.modeling.describe import describe_norms
from tests.surgery.networks import detectron2_inputs, loss, zoo

ZOO = {
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "dc5": "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "semantic": "Misc/semantic_R_50_FPN_1x.yaml",
    "rpn": "COCO-Detection/rpn_R_50_FPN_1x.yaml",
}


def config(name: str, *opts):
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    cfg.merge_from_file(zoo(ZOO[name]), allow_unsafe=True)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    return cfg


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "semantic"))
                                  for n in ZOO])  # fmt: skip
def test_our_names_in_the_stock_keys_build_our_parts(name):
    cfg = config(name, "MODEL.RESNETS.NORM", "FRN+TLU", "MODEL.SEM_SEG_HEAD.NORM", "FRN+TLU",
                 "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16)  # fmt: skip
    cfg.freeze()
    model = build_model(cfg)
    stem = model.backbone.bottom_up.stem if hasattr(model.backbone, "bottom_up") else (
        model.backbone.stem)  # fmt: skip
    assert isinstance(stem.conv1.norm, FilterResponseNorm2d)
    assert stem.conv1.norm.activation == "TLU"
    assert not {row.part for row in describe_norms(model)} & {"proposals", "regions", "detector"}
    loss(model).backward()
    assert cfg.MODEL.BACKBONE.NAME.startswith("build_resnet") or name == "retinanet"


def test_the_semantic_head_has_the_norm_of_its_key():
    model = build_model(config("semantic", "MODEL.SEM_SEG_HEAD.NORM", "GN+WS"))
    convs = [m for m in model.sem_seg_head.modules() if isinstance(m, WSConv2d)]
    assert len(convs) == 7 and all(conv.norm.activation == "ReLU" for conv in convs)


@pytest.mark.slow
def test_retinanet_by_its_stock_name():
    model = build_model(config("retinanet", "MODEL.RETINANET.NORM", "GN+TLU"))
    assert isinstance(model.head.cls_subnet[1], NormLayer)
    assert model.head.cls_subnet[1].activation == "TLU"


def test_a_key_of_ours_alone_is_enough():
    cfg = config("semantic", "MODEL.NORMDET.RPN_HEAD_NORM", "GN")
    assert normdet.modeling.stock.asks_for_ours(cfg)
    assert not normdet.modeling.stock.asks_for_ours(config("semantic"))


def test_detectron2_builds_what_it_honours():
    model = build_model(config("semantic", "MODEL.RESNETS.NORM", "GN"))
    assert type(model.backbone.bottom_up.stem.conv1.norm) is nn.GroupNorm


def test_detectron2s_optimizer_decays_no_norm():
    cfg = config("semantic", "MODEL.RESNETS.NORM", "FRN+TLU", "MODEL.SEM_SEG_HEAD.NORM", "FRN+TLU")
    model = build_model(cfg)
    optimizer = DefaultTrainer.build_optimizer(cfg, model)
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert set(decay) == {p for p in model.parameters() if p.requires_grad}
    for module in model.modules():
        expected = 0.0 if isinstance(module, NormLayer) else cfg.SOLVER.WEIGHT_DECAY
        for parameter in module.parameters(recurse=False):
            if parameter in decay:
                assert decay[parameter] == expected


@pytest.mark.slow
def test_one_step_of_the_default_trainer(tmp_path):
    cfg = config("mask", "MODEL.RESNETS.NORM", "FRN+TLU+WS", "MODEL.ROI_MASK_HEAD.NORM", "GN",
                 "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", 1,
                 "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16)  # fmt: skip

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [detectron2_inputs()] * 2

    cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    before = trainer.model.backbone.bottom_up.res3[0].conv1.norm.tau.clone()
    trainer.train()
    assert not torch.equal(trainer.model.backbone.bottom_up.res3[0].conv1.norm.tau, before)
