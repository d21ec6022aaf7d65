"""The values that config keys may have: a table of rules, checked before anything is built.

detectron2 checks types at best. A wrong value shows where it is used: as a traceback from a
library, after an hour, or never.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from .errors import NormdetError
from .options import METHODS


@dataclass(frozen=True)
class Rule:
    """A condition on a value, and its words, which follow "must be"."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def whole(least: int, most: int | None = None) -> Rule:
    """A whole number from `least`, up to `most` if given."""
    words = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    return Rule(
        words,
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= least
        and (most is None or v <= most),
    )  # fmt: skip


def number(least: float, most: float = math.inf, *, above: bool = False) -> Rule:
    """A finite number from `least`, or above it, up to `most`."""
    words = f"a number {'above' if above else 'from'} {least:g}"
    words += "" if most == math.inf else f" {'and up to' if above else 'to'} {most:g}"
    return Rule(
        words, lambda v: _is_number(v) and (v > least if above else v >= least) and v <= most
    )


def one_of(*values: Any) -> Rule:
    """One of a few."""
    return Rule(f"one of {', '.join(map(repr, values))}", lambda v: v in values)


def each(rule: Rule, least: int = 0) -> Rule:
    """A list with a minimum length, each member of which keeps `rule`."""
    words = f"a list{f' of at least {least}' if least else ''}, each {rule.words}"
    return Rule(words, lambda v: _is_list(v) and len(v) >= least and all(map(rule.holds, v)))


def either(*rules: Rule) -> Rule:
    """Any of several rules."""
    return Rule(" or ".join(r.words for r in rules), lambda v: any(r.holds(v) for r in rules))


def rising(rule: Rule) -> Rule:
    """A list whose members keep `rule` and rise."""
    inner = each(rule)
    return Rule(
        f"{inner.words}, rising",
        lambda v: inner.holds(v) and all(a < b for a, b in itertools.pairwise(v)),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_device(value: Any) -> bool:
    try:
        return torch.device(value).type in ("cpu", "cuda", "mps", "xpu")
    except (RuntimeError, TypeError):
        return False


_COUNT, _AMOUNT, _SHARE = whole(1), whole(0), number(0, 1)
_POSITIVE = number(0, above=True)
_SIZES = each(_POSITIVE, 1)
_NONE = one_of(None)
_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_POOLER = one_of("ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated")
_STAGES = each(one_of("stem", "res2", "res3", "res4", "res5"), 1)

RULES: dict[str, Rule] = {
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.REFERENCE_WORLD_SIZE": _AMOUNT,
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.MOMENTUM": number(0, 1),
    "SOLVER.WEIGHT_DECAY": number(0),
    "SOLVER.WEIGHT_DECAY_NORM": either(_NONE, number(0)),
    "SOLVER.WEIGHT_DECAY_BIAS": either(_NONE, number(0)),
    "SOLVER.BIAS_LR_FACTOR": number(0),
    "SOLVER.GAMMA": _POSITIVE,
    "SOLVER.STEPS": rising(_AMOUNT),
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    ),
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.WARMUP_FACTOR": number(0, 1),
    "SOLVER.WARMUP_ITERS": _AMOUNT,
    "SOLVER.NUM_DECAYS": _COUNT,
    "SOLVER.BASE_LR_END": number(0),
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.ACCUMULATE_STEPS": _COUNT,
    "SOLVER.HANG_SECONDS": number(0),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "full_model", "adaptive"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _POSITIVE,
    "SOLVER.EMA.DECAY": Rule(
        "a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1
    ),
    "SOLVER.AMP.DTYPE": one_of("float16", "bfloat16"),
    "DATASETS.PIXEL_STD": each(_POSITIVE),
    "DATALOADER.NUM_WORKERS": _AMOUNT,
    "DATALOADER.SAMPLER_TRAIN": one_of(
        "TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"
    ),
    "DATALOADER.REPEAT_THRESHOLD": _SHARE,
    "INPUT.MIN_SIZE_TRAIN": each(_AMOUNT, 1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": _COUNT,
    "INPUT.MIN_SIZE_TEST": _AMOUNT,
    "INPUT.MAX_SIZE_TEST": _COUNT,
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.FORMAT": one_of("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": one_of("polygon", "bitmask"),
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": each(_POSITIVE, 2),
    "INPUT.TILE": _AMOUNT,
    "INPUT.TILE_OVERLAP": _AMOUNT,
    "INPUT.TILE_STATISTICS": one_of("image", "own"),
    "TEST.EVAL_PERIOD": _AMOUNT,
    "TEST.DETECTIONS_PER_IMAGE": _COUNT,
    "TEST.KEYPOINT_OKS_SIGMAS": each(_POSITIVE),
    "TEST.PRECISE_BN.NUM_ITER": _COUNT,
    "TEST.AUG.MIN_SIZES": each(_COUNT, 1),
    "TEST.AUG.MAX_SIZE": _COUNT,
    "VIS_PERIOD": _AMOUNT,
    "MODEL.DEVICE": Rule("a device such as 'cpu', 'cuda' or 'cuda:1'", _is_device),
    "MODEL.PIXEL_MEAN": each(number(-math.inf), 1),
    "MODEL.PIXEL_STD": _SIZES,
    "MODEL.BACKBONE.FREEZE_AT": whole(0, 5),
    "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101, 152),
    "MODEL.RESNETS.NUM_GROUPS": _COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _COUNT,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _COUNT,
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
    "MODEL.RESNETS.OUT_FEATURES": _STAGES,
    "MODEL.FPN.OUT_CHANNELS": _COUNT,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.ANCHOR_GENERATOR.SIZES": either(each(_SIZES, 1), _SIZES),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": either(each(_SIZES, 1), _SIZES),
    "MODEL.ANCHOR_GENERATOR.OFFSET": number(0, 1),
    "MODEL.RPN.IOU_THRESHOLDS": rising(_SHARE),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.SMOOTH_L1_BETA": number(0),
    "MODEL.RPN.LOSS_WEIGHT": number(0),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.ROI_HEADS.NUM_CLASSES": _COUNT,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": rising(_SHARE),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": number(0),
    "MODEL.ROI_BOX_HEAD.NUM_FC": _AMOUNT,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _COUNT,
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": _COUNT,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": each(_COUNT, 1),
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": number(0),
    "MODEL.RETINANET.NUM_CLASSES": _COUNT,
    "MODEL.RETINANET.NUM_CONVS": _AMOUNT,
    "MODEL.RETINANET.IOU_THRESHOLDS": rising(_SHARE),
    "MODEL.RETINANET.PRIOR_PROB": number(0, 1, above=True),
    "MODEL.RETINANET.SCORE_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _COUNT,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": _SHARE,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": number(0),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": number(0),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    **{
        f"MODEL.{head}.{key}": rule
        for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD")
        for key, rule in (
            ("POOLER_RESOLUTION", _COUNT), ("POOLER_SAMPLING_RATIO", _AMOUNT),
            ("POOLER_TYPE", _POOLER),
        )
    },
    **{
        f"MODEL.{head}.{key}": rule
        for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD")
        for key, rule in (("NUM_CONV", _AMOUNT), ("CONV_DIM", _COUNT))
    },
    "PRETRAIN.NUM_CLASSES": whole(2),
    "PRETRAIN.SIZE": whole(32),
    "PRETRAIN.SMALLEST_CROP": number(0, 1, above=True),
    "PRETRAIN.LABEL_SMOOTHING": Rule(
        "a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1
    ),
    "PRETRAIN.MIXUP": number(0),
    "MODEL.NORMDET.STATISTICS_PERIOD": _AMOUNT,
    "MODEL.NORMDET.ANNEAL_UNTIL": number(0, 1, above=True),
    "MODEL.NORMDET.START.IMAGES": _AMOUNT,
    "MODEL.NORMDET.START.KEEP": Rule(
        "a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1
    ),
}  # fmt: skip
# Of every method that has such a parameter.
_OF_METHODS = {
    "EPS": _POSITIVE, "MOMENTUM": number(0, 1), "NUM_GROUPS": _COUNT, "MIXTURE": _COUNT,
    "WARMUP": _AMOUNT,
    "OPEN": _AMOUNT, "R_MAX": number(1), "D_MAX": number(0), "RATE": number(0),
}  # fmt: skip
# Keys whose values are names in a registry, and the registry of each.
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": "META_ARCH_REGISTRY",
    "MODEL.BACKBONE.NAME": "BACKBONE_REGISTRY",
    "MODEL.RPN.HEAD_NAME": "RPN_HEAD_REGISTRY",
    "MODEL.ANCHOR_GENERATOR.NAME": "ANCHOR_GENERATOR_REGISTRY",
    "MODEL.ROI_HEADS.NAME": "ROI_HEADS_REGISTRY",
    "MODEL.ROI_BOX_HEAD.NAME": "ROI_BOX_HEAD_REGISTRY",
    "MODEL.ROI_MASK_HEAD.NAME": "ROI_MASK_HEAD_REGISTRY",
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "ROI_KEYPOINT_HEAD_REGISTRY",
}


def all_rules() -> Iterator[tuple[str, Rule]]:
    """Every key that has a rule, those of methods' parameters included."""
    yield from RULES.items()
    for method in METHODS.values():
        for param in method.params:
            if param in _OF_METHODS:
                yield f"MODEL.NORMDET.{method.name}.{param}", _OF_METHODS[param]


def check_values(cfg) -> None:
    """Refuse values that no run can use; keys that a config lacks are skipped.

    Args:
        cfg: a config with detectron2's keys.

    Raises:
        NormdetError: naming every such key, what it is and what it must be.
    """
    wrong = [
        f"{key} is {value!r}, it must be {rule.words}"
        for key, rule in all_rules()
        if (value := _find(cfg, key)) is not _MISSING and not _holds(rule, value)
    ]
    wrong += list(_unknown_names(cfg)) or list(_that_disagree(cfg))
    if wrong:
        raise NormdetError("; ".join(wrong))


_MISSING = object()


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return rule.holds(value)
    except TypeError:  # members that do not compare
        return False


def _find(cfg, key: str) -> Any:
    for name in key.split("."):
        if name not in cfg:
            return _MISSING
        cfg = cfg[name]
    return cfg


def _unknown_names(cfg) -> Iterator[str]:
    from detectron2 import modeling
    from detectron2.modeling import anchor_generator, meta_arch, proposal_generator, roi_heads
    from detectron2.modeling.proposal_generator import rpn

    from . import modeling as ours  # noqa: F401  (registers)

    rooms = (modeling, meta_arch, proposal_generator, rpn, anchor_generator, roi_heads)
    for key, name in _REGISTRIES.items():
        registry = next((getattr(r, name) for r in rooms if hasattr(r, name)), None)
        value = _find(cfg, key)
        # An empty name stands for a part that is not built.
        if registry is None or value in (_MISSING, "") or value in registry:
            continue
        known = ", ".join(sorted(known for known, _ in registry))
        yield f"{key} is {value!r}, it must be one of {known}"


def _that_disagree(cfg) -> Iterator[str]:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if _is_list(mean) and _is_list(std) and len(mean) != len(std):
        yield (
            f"MODEL.PIXEL_MEAN has {len(mean)} numbers and MODEL.PIXEL_STD {len(std)}, they must "
            "be as many"
        )
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE.startswith("relative"):
        if any(size > 1 for size in cfg.INPUT.CROP.SIZE):
            yield (
                f"INPUT.CROP.SIZE is {list(cfg.INPUT.CROP.SIZE)}, for INPUT.CROP.TYPE "
                f"{cfg.INPUT.CROP.TYPE!r} it must be shares up to 1"
            )
