"""The parts of a detectron2 detector, for :func:`normdet.normalize`; some have no norms yet."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from detectron2.modeling.backbone import FPN
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    KRCNNConvDeconvUpsampleHead,
    MaskRCNNConvUpsampleHead,
)
from torch import nn

from ..keys import USUAL_PARTS
from ..options import NormOption
from ..parts import NORMED, belongs
from ..surgery import Bare, knows_bare_parts
from .box_head import normalize_box_head
from .fpn import normalize_fpn
from .keypoint_head import normalize_keypoint_head
from .mask_head import normalize_mask_head
from .retinanet import normalize_retinanet_head
from .rpn_head import normalize_rpn_head
from .start import start_from_data

_NONE = NormOption()


@knows_bare_parts
def bare_parts(model: nn.Module, option: NormOption, parts: list[str] | None) -> Bare | None:
    """What to normalize in a detector of detectron2 beside the norms it has.

    Args:
        parts: names out of :data:`normdet.parts.NORMED` or of modules; None for the usual parts.
    """
    if not _is_detector(model):
        return None
    if parts == ["all"]:
        parts = list(NORMED)
    wanted = USUAL_PARTS if parts is None else [part for part in parts if part in NORMED]
    # A head without norms has no statistics to fix.
    found = {} if option.needs_statistics else _bare(model, option)
    dress = {name: act for part in wanted for name, act in found.get(part, {}).items()}
    if parts is None:
        return Bare(None, dress, _start)
    modules = [part for part in parts if part not in NORMED]
    names = [name for name, _ in model.named_modules()]
    modules += [name for name in names if any(belongs(name, NORMED[part]) for part in wanted)]
    return Bare(modules, dress, _start)


def _start(model: nn.Module, batches: Iterable[Any], names: list[str]) -> list[str]:
    return start_from_data(model, batches, prefixes=names)


def _is_detector(model: nn.Module) -> bool:
    return hasattr(model, "backbone") and any(
        isinstance(module, FPN | RPN | RetinaNetHead) for module in model.modules()
    )


def _bare(model: nn.Module, option: NormOption) -> dict[str, dict[str, Callable[[], Any]]]:
    """For every part, the function that gives norms to its modules without any."""
    found: dict[str, dict[str, Callable[[], Any]]] = {part: {} for part in NORMED}
    levels = _levels(model)
    for name, module in model.named_modules():
        if isinstance(module, FPN):
            if not _normed(module.lateral_convs):
                found["fpn"][name] = partial(normalize_fpn, module, option, _NONE)
            if hasattr(module.top_block, "p6") and not hasattr(module.top_block, "p6_norm"):
                found["fpn_top"][f"{name}.top_block"] = partial(
                    normalize_fpn, module, _NONE, option
                )
        elif isinstance(module, StandardRPNHead) and not _normed([module.conv]):
            found["rpn_head"][name] = partial(normalize_rpn_head, module, option, levels)
        elif isinstance(module, FastRCNNConvFCHead):
            if module.conv_norm_relus and not _normed(module.conv_norm_relus):
                found["box_head"][name] = partial(normalize_box_head, module, option, _NONE)
            if module.fcs and not hasattr(module, "fc_norm1"):
                found["box_fc"][f"{name}.fc"] = partial(normalize_box_head, module, _NONE, option)
        elif isinstance(module, MaskRCNNConvUpsampleHead):
            if not _normed(module.conv_norm_relus):
                found["mask_head"][name] = partial(normalize_mask_head, module, option, _NONE)
            if not hasattr(module, "deconv_norm"):
                found["mask_deconv"][f"{name}.deconv"] = partial(
                    normalize_mask_head, module, _NONE, option
                )
        elif isinstance(module, KRCNNConvDeconvUpsampleHead):
            if not hasattr(module, "conv_fcn_norm1"):
                found["keypoint_head"][name] = partial(normalize_keypoint_head, module, option)
        elif isinstance(module, RetinaNetHead) and len(module.cls_subnet) == 2 * sum(
            isinstance(layer, nn.Conv2d) for layer in module.cls_subnet
        ):
            found["retinanet_head"][name] = partial(
                normalize_retinanet_head, module, option, levels
            )
    return found


def _normed(convs) -> bool:
    layers = [layer for conv in convs for layer in conv.modules()]
    return any(getattr(layer, "norm", None) is not None for layer in layers)


def _levels(model: nn.Module) -> int:
    """The number of feature maps that a shared head sees in turn."""
    if hasattr(model, "head_in_features"):
        return len(model.head_in_features)
    return len(getattr(getattr(model, "proposal_generator", None), "in_features", [0]))
