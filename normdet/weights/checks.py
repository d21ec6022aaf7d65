"""What is known about a weights file, and whether a config suits it.

Only facts count: what a checkpoint says of itself (:func:`describe` is stored in each of ours), the
conventions of published files known by name, and what the tensors show for certain.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fvcore.common.config import CfgNode

from normdet.errors import NormdetError
from normdet.options import METHODS, names

BACKBONE = "MODEL.RESNETS.NORM"
DIALECT = "MODEL.NORMDET.WS.DIALECT"
STRIDE, FORMAT = "MODEL.RESNETS.STRIDE_IN_1X1", "INPUT.FORMAT"
MEAN, STD = "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"

# Each NORM key, and where its part's tensors stand in a detectron2 model.
PARTS = {
    BACKBONE: ("backbone.bottom_up.", "backbone.stem.", "backbone.res"),
    "MODEL.FPN.NORM": ("backbone.fpn_",),
    "MODEL.NORMDET.FPN_TOP_NORM": ("backbone.top_block.",),
    "MODEL.NORMDET.RPN_HEAD_NORM": ("proposal_generator.rpn_head.",),
    "MODEL.ROI_BOX_HEAD.NORM": ("roi_heads.box_head.",),
    "MODEL.NORMDET.BOX_FC_NORM": ("roi_heads.box_head.",),
    "MODEL.NORMDET.RES5_HEAD_NORM": ("roi_heads.res5.",),
    "MODEL.ROI_MASK_HEAD.NORM": ("roi_heads.mask_head.",),
    "MODEL.NORMDET.MASK_DECONV_NORM": ("roi_heads.mask_head.deconv.",),
    "MODEL.NORMDET.KEYPOINT_HEAD_NORM": ("roi_heads.keypoint_head.",),
    "MODEL.RETINANET.NORM": ("head.",),
}


@dataclass(frozen=True)
class Facts:
    """What is known about a weights file; what is absent is not known.

    Attributes:
        norms: a part's NORM key: the option its weights were trained under, as stated.
        shown: the backbone's norm as far as its tensors show it, which leaves WS open.
        settings: other config keys and the values the weights were trained under.
        folded: whether batch statistics are folded into the affine, so that it holds only frozen.
    """

    norms: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ""
    folded: bool = False


_BGR = {FORMAT: "BGR", MEAN: [103.53, 116.28, 123.675]}
_UNIT = {**_BGR, STD: [1.0, 1.0, 1.0]}
_MSRA = Facts({BACKBONE: "BN"}, {**_UNIT, STRIDE: True})
_FAIR_GN = Facts({BACKBONE: "GN"}, {**_UNIT, STRIDE: False})
_FAIR_X101 = Facts({BACKBONE: "BN"}, {**_BGR, STD: [57.375, 57.12, 58.395], STRIDE: False})
_TORCHVISION = Facts(
    {BACKBONE: "BN"},
    {FORMAT: "RGB", MEAN: [123.675, 116.28, 103.53], STD: [58.395, 57.12, 57.375], STRIDE: False},
)
_GN_WS = Facts({BACKBONE: "GN+WS"}, {DIALECT: "jhu"})

# Published files by the end of their path, or `__author__` in the file: the conventions stated in
# detectron2's model catalog, zoo configs and conversion script. The first match counts.
_PUBLISHED = tuple(
    (re.compile(pattern, re.IGNORECASE), facts)
    for pattern, facts in (
        (r"gn[-_+]ws[^/]*$", _GN_WS),
        (r"\bR-(50|101)-GN(\.pkl)?$", _FAIR_GN),
        (r"\bMisc/(scratch_)?mask_rcnn_R_50_FPN_3x_gn/\d+/\w+\.pkl$", _FAIR_GN),
        (r"\bMSRA/R-(50|101)(\.pkl)?$", _MSRA),
        (r"\bCOCO-\w+/\w*R_(50|101)_(C4|DC5|FPN|)_?[13]x/\d+/\w+\.pkl$", _MSRA),
        (r"\bFAIR/X-101-32x8d(\.pkl)?$", _FAIR_X101),
        (r"\bCOCO-\w+/\w*X_101_32x8d_FPN_[13]x/\d+/\w+\.pkl$", _FAIR_X101),
        (r"\btorchvision/R-\d+(\.pkl)?$|^torchvision$", _TORCHVISION),
        (r"\bresnet(50|101|152)-[0-9a-f]{8}\.pth$", _TORCHVISION),
    )
)


def describe(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint says of itself: plain values that :func:`facts_of` reads back."""
    norms = {key: str(value) for key in PARTS if (value := _get(cfg, key)) is not None}
    settings = {key: _get(cfg, key) for key in (STRIDE, FORMAT, MEAN, STD, DIALECT)}
    return {
        "norms": norms,
        "weight": _weight_method(norms.get(BACKBONE, "")),
        "settings": {
            key: list(value) if isinstance(value, list | tuple) else value
            for key, value in settings.items()
            if value is not None
        },
    }


def facts_of(checkpoint: Mapping[str, Any], source: str) -> Facts:
    """Gather what a checkpoint says, or else its name, and what its tensors show.

    Args:
        checkpoint: tensors by name, or a checkpoint that has them under `"model"`.
        source: path or URL as the user gave it.
    """
    state = checkpoint.get("model", checkpoint)
    said = checkpoint.get("normdet")
    if said is not None:
        known = _read_description(said, source)
    else:
        texts = (source, str(checkpoint.get("__author__", "")))
        matches = (facts for pattern, facts in _PUBLISHED if any(map(pattern.search, texts)))
        known = next(matches, Facts())
    shown = _shown_norm(state)
    folded = _folded(state, known.norms.get(BACKBONE, shown or "BN"))
    return replace(known, shown=shown, folded=folded)


def check_weights(cfg: CfgNode, state_dict: Mapping[str, Any], source: str) -> list[str]:
    """Refuse weights that a config would silently misuse.

    Args:
        cfg: a config with detectron2's keys; normdet's are used where present.
        state_dict: tensors by name, or a checkpoint that has them under `"model"`.
        source: path or URL as the user gave it.

    Returns:
        Warnings, one sentence each, for what loads but does not keep the network's function.

    Raises:
        NormdetError: the stride, channel order or pixel scale is not that of the weights; weights
            trained with WS or another weight method meet a part without it, plain ones meet WS,
            or WS another dialect; folded batch statistics would be trained.
    """
    facts = facts_of(state_dict, source)
    _check_settings(cfg, facts.settings, source)
    state = state_dict.get("model", state_dict)
    warnings = _compare_means(cfg, facts.settings, source)
    norms = dict(facts.norms)
    ours = str(cfg.MODEL.RESNETS.NORM)
    if facts.folded and _uses_batch(ours) and cfg.MODEL.BACKBONE.FREEZE_AT < 5:
        raise NormdetError(
            f"{source} has no batch statistics, they are folded into the affine, which holds only "
            f"while frozen, and {BACKBONE} is {ours!r}: set {BACKBONE} FrozenBN, or take weights "
            "that have running_mean and running_var"
        )
    if BACKBONE not in norms:
        if _standardized(ours):
            warnings.append(
                f"{BACKBONE} is {ours}, and nothing tells whether {source} was trained with WS: "
                "weights that were not lose their function under it"
            )
        if facts.shown:
            norms[BACKBONE] = f"{facts.shown}+WS" if _standardized(ours) else facts.shown
    for key, theirs in norms.items():
        if _get(cfg, key) is not None and (key == BACKBONE or _has(state, PARTS[key])):
            warnings += _check_norm(cfg, key, theirs, facts.settings, source)
    return warnings


def _check_settings(cfg: CfgNode, settings: Mapping[str, Any], name: str) -> None:
    wrong = [
        key
        for key in (STRIDE, FORMAT, STD)
        if key in settings and not _suits(cfg, key, settings[key])
    ]
    if wrong:
        theirs = ", ".join(f"{key} {settings[key]}" for key in wrong)
        ours = ", ".join(f"{key} {_get(cfg, key)}" for key in wrong)
        # Order and mean belong together.
        change = [*wrong, MEAN] if FORMAT in wrong and MEAN in settings else wrong
        way_out = " ".join(f'{key} "{settings[key]}"' for key in change)
        raise NormdetError(
            f"{name} was trained with {theirs}, the config has {ours}: set {way_out}"
        )


def _suits(cfg: CfgNode, key: str, theirs: Any) -> bool:
    ours = _get(cfg, key)
    if ours is None:
        return True
    if key == STRIDE:  # basic blocks have no 1x1 convolution to stride in
        return bool(ours) == bool(theirs) or cfg.MODEL.RESNETS.DEPTH < 50
    if key == FORMAT:
        return {ours, theirs} != {"RGB", "BGR"}
    # Statistics of one's own images are fine; 1 in place of 57 is another network.
    return len(ours) != len(theirs) or all(
        b / 4 < a < b * 4 for a, b in zip(ours, theirs, strict=True)
    )


def _compare_means(cfg: CfgNode, settings: Mapping[str, Any], name: str) -> list[str]:
    ours, theirs = _get(cfg, MEAN), settings.get(MEAN)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return []
    if all(abs(a - b) < 2 for a, b in zip(ours, theirs, strict=True)):
        return []
    return [f"{name} was trained with {MEAN} {list(theirs)}, the config has {list(ours)}"]


def _check_norm(
    cfg: CfgNode, key: str, theirs: str, settings: Mapping[str, Any], name: str
) -> list[str]:
    """Compare one part's option in the config with that of the weights."""
    ours = str(_get(cfg, key))
    our_method, their_method = _weight_method(ours), _weight_method(theirs)
    if our_method != their_method and (their_method or our_method == "WS"):
        method = their_method or our_method
        method = "weight standardization" if method == "WS" else method
        how = f"{'with' if their_method else 'without'} {method}"
        change = "+".join(filter(None, (_without_weight_method(ours), their_method)))
        raise NormdetError(
            f"{name} was trained {how} and {key} is {ours!r}: its weights mean nothing there; "
            f"set {key} {change}"
        )
    if _standardized(ours):
        trained, asked = settings.get(DIALECT), _get(cfg, DIALECT)
        if None not in (trained, asked) and trained != asked:
            raise NormdetError(
                f"{name} was trained with the WS dialect {trained!r} and {DIALECT} is {asked!r}: "
                f"set {DIALECT} {trained}"
            )
    if our_method == their_method or METHODS[our_method].takes_plain:
        ours, theirs = _without_weight_method(ours), _without_weight_method(theirs)
    starts_as_bn = _is_bn(ours) or ours == "BIN"  # its gate starts there
    if ours == theirs or (starts_as_bn and _is_bn(theirs)):
        return []
    return [
        f"{name} was trained with {theirs or 'no norm'} and {key} is {ours or 'no norm'}: what "
        "fits is copied, but the network's function is lost until trained again"
    ]


def _read_description(said: Any, source: str) -> Facts:
    """The inverse of :func:`describe`, for a file that anyone may have written."""
    try:
        norms = {key: str(said["norms"][key]) for key in PARTS if key in said["norms"]}
        settings = dict(said["settings"])
        for key in settings.keys() & {MEAN, STD}:
            settings[key] = [float(value) for value in settings[key]]
        # They are compared, and printed in an error.
        for key in settings.keys() & {STRIDE, FORMAT, DIALECT}:
            settings[key] = bool(settings[key]) if key == STRIDE else str(settings[key])
    except (KeyError, TypeError, ValueError) as error:
        raise NormdetError(f"{source}: its 'normdet' entry is not normdet's") from error
    return Facts(norms, settings)


# Names of detectron2, Caffe2 and torchvision; heads have convolutions called conv1 as well.
_BACKBONE_TENSOR = re.compile(
    r"(module\.)?((backbone\.)?(bottom_up\.)?(stem\.|res\d)|res_conv1|conv1[._]|bn1\.|layer\d\.)"
)


def _backbone(state: Mapping[str, Any]) -> list[str]:
    return [key for key in state if _BACKBONE_TENSOR.match(key)]


def _shown_norm(state: Mapping[str, Any]) -> str:
    """The backbone's norm as far as names show it."""
    for ending, norm in ((("running_var", "_bn_s", "_bn_riv"), "BN"), (("_gn_s",), "GN")):
        if any(key.endswith(ending) for key in _backbone(state)):
            return norm
    return ""


def _folded(state: Mapping[str, Any], norm: str) -> bool:
    """Whether the backbone has a batch norm's affine but not its statistics."""
    if not _is_bn(norm):
        return False
    keys = _backbone(state)
    layers = [key.removesuffix("running_var") for key in keys if key.endswith(".running_var")]
    if layers:  # FrozenBN saves statistics even where folding left it none
        return all(_is_identity(state, layer) for layer in layers) and not all(
            _is_start(state, layer) for layer in layers
        )
    has_statistics = any(key.endswith(("running_var", "_riv")) for key in keys)
    return not has_statistics and any(key.endswith((".norm.weight", "_bn_s")) for key in keys)


def _is_identity(state: Mapping[str, Any], layer: str) -> bool:
    """Whether a layer has the statistics of no data: mean 0 and variance 1, less an eps."""
    mean, variance = (
        torch.as_tensor(state.get(layer + name, math.nan))
        for name in ("running_mean", "running_var")
    )
    return not mean.any() and bool(((variance - 1).abs() < 2e-5).all())


def _is_start(state: Mapping[str, Any], layer: str) -> bool:
    """Whether a layer's affine has its start values: of an untrained network nothing is lost."""
    weight, bias = (torch.as_tensor(state.get(layer + name, 0)) for name in ("weight", "bias"))
    return bool(((weight == 0) | (weight == 1)).all()) and not bias.any()


def _get(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if part not in node:
            return None
        node = node[part]
    return node


def _has(state: Mapping[str, Any], prefixes: tuple[str, ...]) -> bool:
    return any(key.removeprefix("module.").startswith(prefixes) for key in state)


def _weight_method(option: str) -> str:
    return next((part for part in option.split("+") if part in names("weight")), "")


def _without_weight_method(option: str) -> str:
    return "+".join(part for part in option.split("+") if part not in names("weight"))


def _standardized(option: str) -> bool:
    return _weight_method(option) == "WS"


def _is_bn(option: str) -> bool:
    """Whether its test time is BN's, under any of detectron2's names or as BRN and EvalNorm."""
    return re.fullmatch(r"(Frozen|Sync|nnSync|naiveSync)?BN(_N)?|BRN|EvalNorm", option) is not None


def _uses_batch(option: str) -> bool:
    norm = option.split("+")[0]
    return METHODS[norm].needs_batch if norm in METHODS else _is_bn(norm)
