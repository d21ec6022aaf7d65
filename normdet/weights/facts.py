"""Facts about a weights file: how it was trained, and so what a config must say.

Facts have three sources: the file's own description (each of ours stores :func:`describe`), the
conventions of published files known by name, and what the tensors show for certain. A value that is
only usual for a file's layout is marked as assumed.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from normdet.errors import NormdetError
from normdet.keys import AS_BACKBONE, has_part
from normdet.layers import batch_statistics
from normdet.layers.batch_statistics import of_no_data
from normdet.option_text import FROZEN
from normdet.options import read_stated
from normdet.parts import NORMED, PARTS, Part, belongs

BACKBONE = PARTS["backbone"].key
DIALECT = "MODEL.NORMDET.WS.DIALECT"
STRIDE, FORMAT = "MODEL.RESNETS.STRIDE_IN_1X1", "INPUT.FORMAT"
MEAN, STD = "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"
# The key of the std of the images themselves, if they are not of 8 bits.
IMAGE_STD = "DATASETS.PIXEL_STD"
# ImageNet's std in grey values of 8 bits; published weights were trained on it.
IMAGENET_STD = 57.0


_KEYS = {part.key: part for part in NORMED.values()}


@dataclass(frozen=True)
class Facts:
    """The facts about a weights file; absent ones are not known.

    Attributes:
        norms: by a part's NORM key, the option its weights were trained under, as stated.
        shown: by a part's NORM key, its norm as far as the tensors show it; WS leaves no trace.
        settings: other config keys and the values the weights were trained under.
        assumed: the keys of `settings` that are only usual for files of this kind.
        folded: whether batch statistics are folded into the affine, which is valid only frozen.
        raw_pixels: whether the stem's statistics are of pixels not divided by a deviation.
    """

    norms: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    folded: bool = False
    raw_pixels: bool | None = None


_BGR = {FORMAT: "BGR", MEAN: [103.53, 116.28, 123.675]}
CAFFE_INPUT = {**_BGR, STD: [1.0, 1.0, 1.0]}
TORCHVISION_INPUT = {
    FORMAT: "RGB", MEAN: [123.675, 116.28, 103.53], STD: [58.395, 57.12, 57.375]
}  # fmt: skip
MSRA = Facts({BACKBONE: "BN"}, settings={**CAFFE_INPUT, STRIDE: True})
FAIR_GN = Facts({BACKBONE: "GN"}, settings={**CAFFE_INPUT, STRIDE: False})
FAIR_X101 = Facts({BACKBONE: "BN"}, settings={**_BGR, STD: [57.375, 57.12, 58.395], STRIDE: False})
TORCHVISION = Facts({BACKBONE: "BN"}, settings={**TORCHVISION_INPUT, STRIDE: False})
JHU = Facts({BACKBONE: "GN+WS"}, settings={**TORCHVISION_INPUT, STRIDE: False, DIALECT: "jhu"})
_GN_WS = Facts({BACKBONE: "GN+WS"}, settings={DIALECT: "jhu"})
# The parts that mmdetection's models called "-all" normalize.
_ALL = (BACKBONE, "MODEL.FPN.NORM", "MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_MASK_HEAD.NORM")
_MMDET_GN = Facts(dict.fromkeys(_ALL, "GN"), settings=FAIR_GN.settings)
_MMDET_GN_WS = Facts(dict.fromkeys(_ALL, "GN+WS"), settings=JHU.settings)

# Published files, by the end of their path or by `__author__` in the file. Their conventions are
# stated in detectron2's model catalog, zoo configs and conversion script, in mmdetection's configs
# and in those of WS's authors. The first match counts.
_PUBLISHED = tuple(
    (re.compile(pattern, re.IGNORECASE), facts)
    for pattern, facts in (
        (r"\bR-(50|101)-GN-WS\.pth(\.tar)?$", JHU),
        (r"\bresnet(50|101)_gn_ws-[0-9a-f]{8}\.pth$", JHU),
        (r"\b(mask|faster)_rcnn_r(50|101)_fpn_gn_ws-all_[^/]*\.pth$", _MMDET_GN_WS),
        (r"gn[-_+]ws[^/]*$", _GN_WS),
        (r"\bR-(50|101)-GN(\.pkl)?$", FAIR_GN),
        (r"\bresnet(50|101)_gn-[0-9a-f]{8}\.pth$", FAIR_GN),
        (r"\bmask_rcnn_r(50|101)_fpn_gn-all_[^/]*\.pth$", _MMDET_GN),
        (r"\bMisc/(scratch_)?mask_rcnn_R_50_FPN_3x_gn/\d+/\w+\.pkl$", FAIR_GN),
        (r"\bMSRA/R-(50|101)(\.pkl)?$", MSRA),
        (r"\bCOCO-\w+/\w*R_(50|101)_(C4|DC5|FPN|)_?[13]x/\d+/\w+\.pkl$", MSRA),
        (r"\bFAIR/X-101-32x8d(\.pkl)?$", FAIR_X101),
        (r"\bCOCO-\w+/\w*X_101_32x8d_FPN_[13]x/\d+/\w+\.pkl$", FAIR_X101),
        (r"\btorchvision/R-\d+(\.pkl)?$|^torchvision$", TORCHVISION),
        (r"\bresnet(50|101|152)-[0-9a-f]{8}\.pth$", TORCHVISION),
    )
)


def published_facts(source: str, author: str = "") -> Facts | None:
    """The facts of a published file that its path or its `__author__` names."""
    texts = (source, author)
    matches = (facts for pattern, facts in _PUBLISHED if any(map(pattern.search, texts)))
    return next(matches, None)


def describe(cfg: CfgNode) -> dict[str, Any]:
    """A checkpoint's description of itself, as plain values for :func:`read_description`."""
    has = [part for part in NORMED.values() if has_part(cfg, part.name)]
    texts = {part.key: find(cfg, part.key) for part in has}
    norms = {key: str(text) for key, text in texts.items() if text not in (None, AS_BACKBONE)}
    settings = {key: find(cfg, key) for key in (STRIDE, FORMAT, MEAN, STD, DIALECT)}
    settings[IMAGE_STD] = find(cfg, IMAGE_STD) or None
    return {
        "norms": norms,
        "settings": {
            key: list(value) if isinstance(value, list | tuple) else value
            for key, value in settings.items()
            if value is not None
        },
    }


def read_description(said: Any, source: str) -> Facts:
    """The inverse of :func:`describe`, for a file that anyone may have written.

    Raises:
        NormdetError: `said` is something else.
    """
    try:
        norms = {key: str(said["norms"][key]) for key in _KEYS if key in said["norms"]}
        settings = dict(said["settings"])
        for key in settings.keys() & {MEAN, STD, IMAGE_STD}:
            settings[key] = [float(value) for value in settings[key]]
        if not all(value > 0 for value in settings.get(IMAGE_STD, ())):
            raise ValueError
        # These are compared, and printed in an error.
        for key in settings.keys() & {STRIDE, FORMAT, DIALECT}:
            settings[key] = bool(settings[key]) if key == STRIDE else str(settings[key])
        known = {
            key: settings[key]
            for key in (STRIDE, FORMAT, MEAN, STD, DIALECT, IMAGE_STD)
            if key in settings
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NormdetError(f"{source}: its 'normdet' entry is not normdet's") from error
    return Facts(norms, settings=known)


# Facts that tensors under detectron2's names show -----------------------------------------------


def shown_norms(state: Mapping[str, Any]) -> dict[str, str]:
    """Each part's norm, as far as the names of its tensors show it.

    Statistics show `BN`. An affine without statistics shows `GN` in a head. In a backbone it shows
    nothing, since it may be GN's or a folded BN's.
    """
    shown = {}
    for part in NORMED.values():
        layers = [name for name in tensors_of(state, part) if ".norm." in name]
        if part.is_stage:  # the backbone's key covers it
            continue
        if any(name.endswith(".running_var") for name in layers):
            shown[part.key] = "BN"
        elif layers and part.key != BACKBONE:
            shown[part.key] = "GN"
    return shown


def is_folded(state: Mapping[str, Any], norm: str) -> bool:
    """Whether a backbone of this norm has a batch norm's affine but not its statistics."""
    if not read_stated(norm).tests_as_bn:
        return False
    keys = tensors_of(state, PARTS["backbone"])
    layers = [key.removesuffix("running_var") for key in keys if key.endswith(".running_var")]
    if not layers:
        return any(key.endswith(".norm.weight") for key in keys)
    # FrozenBN saves statistics even if they are folded into its affine.
    found = [(_statistics(state, layer), _affine(state, layer)) for layer in layers]
    if not all(of_no_data(*statistics) for statistics, _ in found):
        return False
    return any(batch_statistics.is_folded(*statistics, *affine) for statistics, affine in found)


def _statistics(state: Mapping[str, Any], layer: str) -> list[Tensor]:
    names = ("running_mean", "running_var")
    return [torch.as_tensor(state.get(layer + name, math.nan)) for name in names]


def _affine(state: Mapping[str, Any], layer: str) -> list[Tensor]:
    return [torch.as_tensor(state.get(layer + name, 0)) for name in ("weight", "bias")]


# The median over channels of a 7x7 convolution on photographs of the variance over the filter's
# squared norm: about 15,000 for pixels of 0 to 255, and 58^2 times less for pixels divided by their
# deviation. The border is the geometric mean of the two.
_RAW_RATIO = 260


def takes_raw_pixels(state: Mapping[str, Any]) -> bool | None:
    """Whether the stem's statistics are of pixels of 0 to 255 (std 1); None without statistics."""
    for key in tensors_of(state, PARTS["backbone"]):
        if key.endswith("stem.conv1.norm.running_var"):
            layer = key.removesuffix("running_var")
            weight = state.get(key.removesuffix("norm.running_var") + "weight")
            if weight is None or state[key].shape != weight.shape[:1]:
                return None
            if of_no_data(*_statistics(state, layer)):
                return None
            power = torch.as_tensor(weight).flatten(1).float().square().sum(1)
            return bool((torch.as_tensor(state[key]) / power).median() > _RAW_RATIO)
    return None


_DEPTHS = {
    (False, (2, 2, 2, 2)): 18, (False, (3, 4, 6, 3)): 34, (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101, (True, (3, 8, 36, 3)): 152,
}  # fmt: skip


def blocks(state: Mapping[str, Any]) -> tuple[int, ...]:
    """The number of blocks in a ResNet's res2 to res5; a C4 detector's res5 is in its head."""
    found = {
        (int(match[1]), int(match[2]))
        for key in state
        if (match := re.search(r"(?:^|\.)res([2-5])\.(?:(\d+)\.)conv1\.", key))
    }
    return tuple(sum(stage == n for stage, _ in found) for n in (2, 3, 4, 5))


def depth(state: Mapping[str, Any]) -> int | None:
    """The depth of detectron2's ResNet that has these blocks; None if there is none."""
    return _DEPTHS.get((any(re.search(r"res2\.0\.conv3\.", key) for key in state), blocks(state)))


_WIDTHS = {
    "MODEL.FPN.OUT_CHANNELS": "backbone.fpn_output4.weight",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": "roi_heads.box_head.conv1.weight",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "roi_heads.box_head.fc1.weight",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "roi_heads.mask_head.mask_fcn1.weight",
}


def architecture(state: Mapping[str, Any]) -> dict[str, Any]:
    """The config keys that tensors under detectron2's names show, with their values."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}

    def shape(ending: str) -> tuple[int, ...] | None:
        return next((s for key, s in shapes.items() if key.endswith(ending) and len(s)), None)

    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.search(pattern, key))})

    keys: dict[str, Any] = {}
    if (layers := depth(state)) is not None:
        keys["MODEL.RESNETS.DEPTH"] = layers
        if layers < 50:
            keys["MODEL.RESNETS.RES2_OUT_CHANNELS"] = 64
        elif len(inner := shape("res2.0.conv2.weight") or ()) == 4 and all(inner):
            groups = max(inner[0] // inner[1], 1)
            keys["MODEL.RESNETS.NUM_GROUPS"] = groups
            keys["MODEL.RESNETS.WIDTH_PER_GROUP"] = inner[0] // groups
    if convs := count(r"rpn_head\.conv\.conv(\d+)\."):
        keys["MODEL.RPN.CONV_DIMS"] = [-1] * convs
    for key, ending in _WIDTHS.items():
        if width := shape(ending):
            keys[key] = width[0]
    if predictor := shape("roi_heads.box_predictor.cls_score.bias"):
        keys["MODEL.ROI_HEADS.NUM_CLASSES"] = predictor[0] - 1
        deltas = shape("roi_heads.box_predictor.bbox_pred.bias")
        keys["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"] = deltas == (4,) and predictor[0] > 2
        keys["MODEL.ROI_BOX_HEAD.NUM_CONV"] = count(r"roi_heads\.box_head\.conv(\d+)\.")
        keys["MODEL.ROI_BOX_HEAD.NUM_FC"] = count(r"roi_heads\.box_head\.fc(\d+)\.")
    if shape("roi_heads.mask_head.predictor.weight"):
        keys["MODEL.MASK_ON"] = True
        keys["MODEL.ROI_MASK_HEAD.NUM_CONV"] = count(r"mask_head\.mask_fcn(\d+)\.")
    return keys


def required_config(facts: Facts, state: Mapping[str, Any]) -> dict[str, Any]:
    """The config keys under which a file's weights compute the function they were trained for.

    Args:
        facts: about the file.
        state: its tensors under detectron2's names.

    Returns:
        Dotted keys and their values: the architecture, the input's conventions and the norms. A
        backbone trained with BN gets `FrozenBN`, which computes the same at any batch size.
    """
    keys = architecture(state)
    settings = dict(facts.settings)
    if keys.get("MODEL.RESNETS.DEPTH", 50) < 50:  # basic blocks have no 1x1 convolution
        settings.pop(STRIDE, None)
    norms = {**facts.shown, **facts.norms}
    for key, norm in norms.items():
        part = _KEYS[key]
        if tensors_of(state, part):
            option = read_stated(norm)
            if option.norm == "BN" and (part.is_stage or key == BACKBONE):
                option = replace(option, norm=FROZEN)
            keys[key] = str(option)
    return keys | settings


def tensors_of(state: Mapping[str, Any], part: Part) -> list[str]:
    """The names of a part's tensors."""
    return [name for name in state if belongs(name, part)]


def find(cfg: CfgNode, key: str) -> Any:
    """The value at a dotted key; None if the config does not have it."""
    node: Any = cfg
    for part in key.split("."):
        if part not in node:
            return None
        node = node[part]
    return node
