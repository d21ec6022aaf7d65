"""torchvision's Faster and Mask R-CNN with a ResNet and FPN, both versions of their heads.

torchvision numbers the background class 0, pools with the unaligned RoIAlign, and rounds its
anchors to whole pixels. detectron2 does not round them, so proposals of equal weights differ by up
to half a pixel before the box head corrects them.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normdet.weights.facts import TORCHVISION, shown_norms, takes_raw_pixels

from .layout import Imported, nth
from .resnets import detector_tensors

_BODY = "backbone.body."
# Version 2 numbers the layers of a block: 0 is the convolution, 1 its norm. Newer files of the
# first version do the same, with 0 alone.
_CONV = r"(?:0\.)?(?P<conv>weight|bias)|1\.(?P<norm>\w+)"


_FPN = {"inner": "lateral", "layer": "output"}
_RULES = (
    (
        rf"backbone\.fpn\.(inner|layer)_blocks\.(?P<n>[0-3])\.(?:{_CONV})",
        lambda m: f"backbone.fpn_{_FPN[m[1]]}{nth(m, 2)}",
    ),
    (r"rpn\.head\.conv\.(weight|bias)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.head\.conv\.(\d)\.0\.(weight|bias)", r"proposal_generator.rpn_head.conv.conv\1.\2"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (
        rf"roi_heads\.box_head\.(?P<n>[0-3])\.(?:{_CONV})",
        lambda m: f"roi_heads.box_head.conv{nth(m)}",
    ),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi_heads.box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi_heads.box_head.fc2.\1"),
    (r"roi_heads\.box_head\.5\.(\w+)", r"roi_heads.box_head.fc1.\1"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(\w+)", r"roi_heads.box_predictor.\1.\2"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", r"roi_heads.mask_head.mask_fcn\1.\2"),
    (
        rf"roi_heads\.mask_head\.(?P<n>\d)\.(?:{_CONV})",
        lambda m: f"roi_heads.mask_head.mask_fcn{nth(m)}",
    ),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_heads.mask_head.predictor.\1"),
)
# torchvision loads these files with an eps of 0 in its frozen norms.
_WITHOUT_EPS = re.compile(r"_resnet50_fpn_coco-[0-9a-f]{8}\.pth$")
_EPS = 1e-5

# The background and COCO's category numbers 1 to 90; then the numbers without a category.
_COCO = 91
_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def is_torchvision_detector(state: Mapping[str, Any]) -> bool:
    """Whether a detector's ResNet is called `backbone.body`, as torchvision does."""
    return f"{_BODY}layer1.0.conv1.weight" in state and "rpn.head.cls_logits.weight" in state


def convert(state: Mapping[str, Tensor], checkpoint: Mapping[str, Any], source: str) -> Imported:
    """Convert every part and put classes in detectron2's order.

    If there are 91 classes, these are COCO's category numbers, and the 80 real categories are kept.

    Raises:
        NormdetError: the backbone is no ResNet of detectron2's.
    """
    model, left_out = detector_tensors(state, source, _BODY, _RULES)
    model = {name: _reorder(name, value) for name, value in model.items()}
    single = {key.replace("conv.conv0.", "conv."): key for key in model if "conv.conv0." in key}
    if not any("rpn_head.conv.conv1." in key for key in model):
        for name, key in single.items():
            model[name] = model.pop(key)
    if _WITHOUT_EPS.search(source):
        for key in model:
            if key.endswith("running_var"):
                model[key] = model[key] - _EPS
    settings = {**TORCHVISION.settings}
    for head in ("BOX", "MASK"):
        if any(key.startswith(f"roi_heads.{head.lower()}_head.") for key in model):
            settings[f"MODEL.ROI_{head}_HEAD.POOLER_TYPE"] = "ROIAlign"
            settings[f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO"] = 2
    settings["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"] = [10.0, 10.0, 5.0, 5.0]
    settings["MODEL.ANCHOR_GENERATOR.SIZES"] = [[32], [64], [128], [256], [512]]
    settings["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] = [[0.5, 1.0, 2.0]]
    facts = replace(
        TORCHVISION, norms={}, shown=shown_norms(model), settings=settings,
        assumed=tuple(settings), raw_pixels=takes_raw_pixels(model),
    )  # fmt: skip
    notes = [
        "torchvision rounds its anchors to whole pixels and detectron2 does not: proposals differ "
        "by up to half a pixel"
    ]
    if len(state.get("roi_heads.box_predictor.cls_score.bias", ())) == _COCO:
        notes.append(
            "of its 91 classes the 80 that are COCO's are taken, the numbers without a category not"
        )
    return Imported(model, facts, "torchvision detector", left_out, notes)


def _reorder(name: str, value: Tensor) -> Tensor:
    """Move the background class from the front to the end, or drop it if it is not used."""
    per_class = 4 if ".bbox_pred." in name else 1
    if not any(part in name for part in (".cls_score.", ".bbox_pred.", "mask_head.predictor.")):
        return value
    classes = len(value) // per_class
    kept = [i for i in range(1, classes) if classes != _COCO or i not in _UNUSED]
    if ".cls_score." in name:
        kept.append(0)
    rows = torch.arange(classes * per_class).reshape(classes, per_class)[kept].flatten()
    return value[rows]
