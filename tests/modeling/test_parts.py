"""Every part of every detector takes every option, alone or with the others."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage
from torch import nn

from normdet.config import load_config
from normdet.keys import put
from normdet.layers import NormLayer
from normdet.modeling import describe_norms
from normdet.options import METHODS, parse
from normdet.parts import NORMED, STAGES
from tests.covering import covering_options
from tests.modeling.test_same_as_stock import images

CONFIGS = {
    "mask_rcnn": "coco/mask_rcnn_R_50_FPN_3x_4conv1fc.yaml",
    "retinanet": "coco/retinanet_R_50_FPN_1x.yaml",
    "c4": "coco/mask_rcnn_R_50_C4_1x.yaml",
}
# The title of each part in the start-up table, and a detector that has the part.
ROWS = {
    "backbone": ("mask_rcnn", "backbone res4"),
    "fpn": ("mask_rcnn", "FPN"),
    **{stage: ("mask_rcnn", f"backbone {stage}") for stage in STAGES},
    "fpn_top": ("retinanet", "FPN top"),
    "rpn_head": ("mask_rcnn", "RPN head"),
    "res5_head": ("c4", "res5 on regions"),
    "box_head": ("mask_rcnn", "box head"),
    "box_fc": ("mask_rcnn", "box head"),
    "mask_head": ("mask_rcnn", "mask head"),
    "mask_deconv": ("mask_rcnn", "mask head"),
    "keypoint_head": ("keypoints", "keypoint head"),
    "retinanet_head": ("retinanet", "RetinaNet head"),
    "sem_seg_head": ("panoptic", "semantic head"),
}
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 64,
    "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.CONV_DIM", 32,
    "MODEL.ROI_BOX_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
]  # fmt: skip


def config(detector: str, *opts) -> CfgNode:
    if detector == "keypoints":
        extra = ["MODEL.KEYPOINT_ON", True, "MODEL.MASK_ON", False]
        extra += ["MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [16, 16]]
        return load_config(CONFIGS["mask_rcnn"], [*SMALL, *extra, *opts])
    if detector == "panoptic":
        return load_config(
            CONFIGS["mask_rcnn"], [*SMALL, "MODEL.META_ARCHITECTURE", "PanopticFPN", *opts]
        )
    return load_config(CONFIGS[detector], [*SMALL, *opts])


def shallow(*opts) -> CfgNode:
    """R18, for tests that do not depend on the backbone's depth."""
    opts = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, *opts]
    return config("mask_rcnn", *opts)


def fits(text: str, part: str) -> bool:
    """Whether an option has a meaning in a part: some norms have none in fully connected layers."""
    norm = parse(text).norm
    return part != "box_fc" or not norm or not METHODS[norm].needs_space


def norms_of(model: nn.Module) -> dict[str, str]:
    return {row.part: row.norm for row in describe_norms(model)}


@pytest.mark.slow
@pytest.mark.parametrize("part", NORMED)
def test_each_part_is_set_apart_from_the_others(part):
    detector, row = ROWS[part]
    cfg = config(detector, "MODEL.RESNETS.NORM", "FrozenBN")
    put(cfg, NORMED[part].key, "FRN+TLU")
    norms = norms_of(build_model(cfg))
    assert row in norms
    others = {"none", "FrozenBN"}
    for name, norm in norms.items():
        same_part = (
            name == row
            or (part == "backbone" and "res5" in name)
            or (part == "backbone" and name.startswith("backbone"))
        )
        assert norm == "FRN+TLU" if same_part else norm in others, name


@pytest.mark.slow
@pytest.mark.parametrize("text", covering_options())
def test_every_option_trains_in_every_part(text):
    parts = [part for part in NORMED if fits(text, part)]
    cfg = shallow("MODEL.BACKBONE.FREEZE_AT", 0)
    for part in parts:
        put(cfg, NORMED[part].key, text)
    if text.startswith(("BN", "SyncBN")):
        cfg.MODEL.BACKBONE.FREEZE_AT = 2
    torch.manual_seed(0)
    model = build_model(cfg).train()
    inputs = images("mask_rcnn")

    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    model.eval()
    with torch.no_grad():
        assert len(model(inputs)) == 2


def test_no_relu_stands_behind_a_tlu():
    cfg = shallow("MODEL.BACKBONE.FREEZE_AT", 0)
    for part in NORMED:
        put(cfg, NORMED[part].key, "FRN+TLU")
    model = build_model(cfg)
    assert not [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    taus = [name for name, _ in model.named_parameters() if name.endswith(".tau")]
    # A basic block has a tau behind its first convolution and one of its own after the addition.
    assert "backbone.bottom_up.res2.0.conv1.norm.tau" in taus
    assert "backbone.bottom_up.res2.0.join.tau" in taus
    assert "backbone.bottom_up.res2.0.conv2.norm.tau" not in taus
    assert not [name for name in taus if "fpn_" in name]


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_builds(depth):
    opts = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "FRN+TLU"]
    if depth < 50:
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    backbone = build_backbone(config("mask_rcnn", *opts))
    frns = [m for m in backbone.bottom_up.modules() if isinstance(m, NormLayer)]
    convs = [m for m in backbone.bottom_up.modules() if isinstance(m, nn.Conv2d)]
    joins = {18: 8, 34: 16, 50: 16, 101: 33, 152: 50}[depth]
    assert len(frns) == len(convs) + joins


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "modulated"), [("GN", False), ("FRN+TLU+WS", True)])
def test_deformable_blocks(norm, modulated):
    opts = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]]
    opts += ["MODEL.RESNETS.DEFORM_MODULATED", modulated]
    backbone = build_backbone(config("mask_rcnn", "MODEL.RESNETS.NORM", norm, *opts))
    block = backbone.bottom_up.res5[0]
    assert block.conv2.norm.option == norm and not hasattr(block.conv2_offset.norm, "option")
    sum(value.sum() for value in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    for conv in (block.conv2_offset, block.conv2):
        assert all(torch.isfinite(p.grad).all() for p in conv.parameters())


def test_frozen_stages_train_nothing_and_say_so():
    cfg = shallow("MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.RESNETS.NORM", "BN+TLU")
    model = build_model(cfg).train()
    rows = {row.part: row for row in describe_norms(model)}
    assert rows["backbone stem"].training == rows["backbone res2"].training == "frozen"
    assert rows["backbone res2"].norm == "FrozenBN+TLU"
    assert rows["backbone res3"].training == "trained"
    stem = model.backbone.bottom_up.stem
    before = {name: value.clone() for name, value in stem.state_dict().items()}
    stem(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in stem.state_dict().items())


def test_batch_statistics_are_kept_per_level_in_a_shared_head():
    cfg = shallow("MODEL.NORMDET.RPN_HEAD_NORM", "BN")
    head = build_model(cfg).proposal_generator.rpn_head.train()
    maps = [torch.randn(2, 32, size, size) + k for k, size in enumerate((16, 8, 4, 4, 4))]
    head(maps)
    means = [norm.running_mean for norm in head.conv.norm]
    assert len(means) == 5 and len({tuple(mean.tolist()) for mean in means}) == 5
    assert [key for key in head.conv.norm.state_dict() if "." not in key] == ["weight", "bias"]


def test_the_output_of_an_image_depends_on_the_padding_of_its_batch():
    """Per-example statistics include the padded area, frozen ones do not. This is documented."""
    differs = {}
    for norm in ("FrozenBN", "GN", "FRN+TLU"):
        torch.manual_seed(0)
        resnet = build_backbone(shallow("MODEL.RESNETS.NORM", norm)).bottom_up.eval()
        image = torch.randn(1, 3, 64, 64)
        padded = nn.functional.pad(image, (0, 64))
        with torch.no_grad():
            alone, together = resnet(image)["res2"], resnet(padded)["res2"][..., :16]
        # Away from the seam, where no filter of res2 sees the padding.
        differs[norm] = not torch.allclose(alone[..., :2], together[..., :2], atol=1e-4)
    assert differs == {"FrozenBN": False, "GN": True, "FRN+TLU": True}
