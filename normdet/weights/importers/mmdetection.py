"""mmdetection's Faster and Mask R-CNN with FPN, every part.

From version 2 on, these are as in detectron2: the background is the last class; boxes have no
`+ 1`; anchors of a level are ordered by aspect ratio and centred on the pixel's corner; regression
is divided by the deviations (0.1, 0.1, 0.2, 0.2), which detectron2 writes as weights
(10, 10, 5, 5); and RoIAlign is the aligned one.
"""

import ast
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from normdet.options import read_stated
from normdet.weights.facts import BACKBONE, DIALECT, FORMAT, MEAN, STD, STRIDE, Facts, shown_norms

from .layout import Imported, nth
from .resnets import detector_tensors, resnet_facts

# A convolution and its norm.
_CONV = r"(?:conv\.(?P<conv>weight|bias)|(?:bn|gn)\.(?P<norm>\w+))"


_FPN = "backbone.fpn_"
_NECK = (
    (rf"neck\.lateral_convs\.(?P<n>[0-3])\.{_CONV}", lambda m: f"{_FPN}lateral{nth(m, 2)}"),
    (rf"neck\.fpn_convs\.(?P<n>[0-3])\.{_CONV}", lambda m: f"{_FPN}output{nth(m, 2)}"),
)
_RPN = "proposal_generator.rpn_head."
_BOX, _MASK = "roi_heads.box_head.", "roi_heads.mask_head."
_HEADS = (
    (r"rpn_head\.rpn_conv\.(weight|bias)", rf"{_RPN}conv.\1"),
    (r"rpn_head\.rpn_cls\.(weight|bias)", rf"{_RPN}objectness_logits.\1"),
    (r"rpn_head\.rpn_reg\.(weight|bias)", rf"{_RPN}anchor_deltas.\1"),
    (rf"roi_head\.bbox_head\.shared_convs\.(?P<n>\d+)\.{_CONV}", lambda m: f"{_BOX}conv{nth(m)}"),
    (rf"roi_head\.mask_head\.convs\.(?P<n>\d+)\.{_CONV}", lambda m: f"{_MASK}mask_fcn{nth(m)}"),
    (
        r"roi_head\.bbox_head\.shared_fcs\.(?P<n>\d+)\.(?P<conv>weight|bias)",
        lambda m: f"{_BOX}fc{nth(m)}",
    ),
    (r"roi_head\.bbox_head\.fc_cls\.(weight|bias)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"roi_head\.bbox_head\.fc_reg\.(weight|bias)", r"roi_heads.box_predictor.bbox_pred.\1"),
    (r"roi_head\.mask_head\.upsample\.(weight|bias)", rf"{_MASK}deconv.\1"),
    (r"roi_head\.mask_head\.conv_logits\.(weight|bias)", rf"{_MASK}predictor.\1"),
)

_VERSION_1 = (
    "mmdetection 1 numbers classes from the background and measures boxes with + 1: its "
    "tools/upgrade_model_version.py makes a file of version 2"
)
_SOFTMAX = "a region proposal network with two scores an anchor has no exact counterpart"


def is_mmdetection(state: Mapping[str, Any]) -> bool:
    """Whether a ResNet called `backbone` has mmdetection's neck or a head beside it."""
    return "backbone.layer1.0.conv1.weight" in state and any(
        key.startswith(("neck.", "rpn_head.", "roi_head.", "bbox_head.")) for key in state
    )


def convert(state: Mapping[str, Tensor], checkpoint: Mapping[str, Any], source: str) -> Imported:
    """Convert the parts that compute the same in detectron2; leave the others out, with reasons.

    Raises:
        NormdetError: the backbone is no ResNet of detectron2's.
    """
    rules, why = _known_parts(state)
    model, left_out = detector_tensors(state, source, "backbone.", rules)
    left_out = {key: why.get(key.split(".")[0], reason) for key, reason in left_out.items()}
    layout = "mmdetection detector"
    return Imported(model, _facts(model, _config(checkpoint)), layout, left_out)


def _known_parts(state: Mapping[str, Tensor]) -> tuple[tuple, dict[str, str]]:
    """The rules for the parts that compute as in detectron2, and why the others do not."""
    scores, deltas = (state.get(f"rpn_head.rpn_{name}.bias") for name in ("cls", "reg"))
    if scores is None or deltas is None:  # one-stage detectors number their levels differently
        return (), {}
    if any(key.startswith(("bbox_head.", "mask_head.")) for key in state):
        return _NECK, dict.fromkeys(("rpn_head", "bbox_head", "mask_head"), _VERSION_1)
    if deltas.numel() != 4 * scores.numel():
        rules = tuple(rule for rule in _HEADS if not rule[0].startswith("rpn_head"))
        return _NECK + rules, {"rpn_head": _SOFTMAX}
    return _NECK + _HEADS, {}


# The values of mmdetection's own configs, for files that state none.
_BOX_SETTINGS = {
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
}


def _facts(model: Mapping[str, Tensor], config: Mapping[str, Any]) -> Facts:
    """The facts of the training config in the file, or else those usual for mmdetection."""
    facts = resnet_facts(model)
    shown = {**shown_norms(model), **facts.shown}
    settings = dict(facts.settings)
    if any(key.startswith("roi_heads.") for key in model):
        settings |= _BOX_SETTINGS
    if "MODEL.ROI_MASK_HEAD.POOLER_TYPE" in settings and not any(_MASK in key for key in model):
        del settings["MODEL.ROI_MASK_HEAD.POOLER_TYPE"]
    described = config.get("model")
    if not isinstance(described, dict):
        assumed = (*facts.assumed, *(settings.keys() & _BOX_SETTINGS.keys()))
        return replace(facts, shown=shown, settings=settings, assumed=assumed)
    # mmdetection's own defaults are those of its class: a stride in the 3x3 convolution.
    stated = {STRIDE: _part(described, "backbone").get("style", "pytorch") == "caffe"}
    stated |= _input(config, described)
    norms = {
        key: _option(shown[key], _part(described, *path).get("conv_cfg"))
        for key, path in _PATHS.items()
        if key in shown
    }
    if any(norm != shown[key] for key, norm in norms.items()):
        stated[DIALECT] = "jhu"
    stated |= {
        key: value
        for key, (path, entry, read) in _READ.items()
        if key in settings and (value := _try(read, _part(described, *path).get(entry))) is not None
    }
    assumed = tuple(key for key in settings | stated if key in facts.assumed and key not in stated)
    return Facts(norms, shown, settings | stated, assumed, raw_pixels=facts.raw_pixels)


def _option(norm: str, conv_cfg: Any) -> str:
    """A part's option, from the norm that its tensors show and its kind of convolution."""
    weight = "WS" if conv_cfg == {"type": "ConvWS"} else ""
    return str(replace(read_stated(norm), weight=weight))


_PATHS = {
    BACKBONE: ("backbone",),
    "MODEL.FPN.NORM": ("neck",),
    "MODEL.ROI_BOX_HEAD.NORM": ("roi_head", "bbox_head"),
    "MODEL.ROI_MASK_HEAD.NORM": ("roi_head", "mask_head"),
}


def _weights(stds: Any) -> list[float]:
    return [round(1 / float(std), 6) for std in stds]


def _pooler(layer: Any) -> str:
    return "ROIAlignV2" if layer.get("aligned", True) else "ROIAlign"


_READ = {
    "MODEL.RPN.BBOX_REG_WEIGHTS": (("rpn_head", "bbox_coder"), "target_stds", _weights),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (
        ("roi_head", "bbox_head", "bbox_coder"), "target_stds", _weights,
    ),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (
        ("rpn_head", "anchor_generator"), "ratios", lambda ratios: [[float(r) for r in ratios]],
    ),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": (("roi_head", "bbox_roi_extractor"), "roi_layer", _pooler),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": (("roi_head", "mask_roi_extractor"), "roi_layer", _pooler),
}  # fmt: skip


def _try(read: Any, value: Any) -> Any:
    """Ignore a value in an unknown form, so that the usual one holds."""
    try:
        return None if value is None else read(value)
    except (TypeError, ValueError, AttributeError, ArithmeticError):
        return None


def _part(config: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else {}


def _input(config: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Any]:
    """Channel order, mean and std, from version 3's `data_preprocessor` or `img_norm_cfg`."""
    told = described.get("data_preprocessor") or config.get("img_norm_cfg") or {}
    told = told if isinstance(told, dict) else {}
    rgb = told.get("bgr_to_rgb", told.get("to_rgb"))
    mean, std = (_try(lambda v: [float(x) for x in v], told.get(key)) for key in ("mean", "std"))
    if None in (rgb, mean, std):
        return {}
    return {FORMAT: "RGB" if rgb else "BGR", MEAN: mean, STD: std}


# A published config has some ten thousand characters.
_LONGEST = 1_000_000


def _config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The config that a file carries as Python text, read without running it; `{}` if none."""
    meta = checkpoint.get("meta")
    text = (meta.get("config") or meta.get("cfg")) if isinstance(meta, dict) else None
    if not isinstance(text, str) or len(text) > _LONGEST:
        return {}
    try:
        return {
            target.id: _literal(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    # Python's parser raises the last three at depths that no config has.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}


def _literal(node: ast.expr) -> Any:
    """The value of `dict(a=1)` or of a literal; None for anything else."""
    if isinstance(node, ast.Call):
        return {kw.arg: _literal(kw.value) for kw in node.keywords if kw.arg is not None}
    if isinstance(node, ast.Dict):
        keys = (None if key is None else _literal(key) for key in node.keys)
        return {
            key: _literal(value)
            for key, value in zip(keys, node.values, strict=True)
            if isinstance(key, str)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return None
