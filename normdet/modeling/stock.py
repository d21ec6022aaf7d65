"""A clear refusal where a stock builder meets a name that only ours can honour.

detectron2's `get_norm` looks names up in a closed table, so `NORM: FRN+TLU` in a stock builder ends
in `KeyError: 'FRN+TLU'`. Here the same failure says which builder to use. Names that detectron2
knows pass through untouched.
"""

import functools
from collections.abc import Callable
from types import ModuleType

from detectron2.modeling.backbone import fpn, resnet
from detectron2.modeling.meta_arch import retinanet
from detectron2.modeling.roi_heads import box_head, mask_head

from ..errors import NormdetError

_ADVICE: dict[ModuleType, str] = {
    resnet: "MODEL.RESNETS.NORM {!r} needs MODEL.BACKBONE.NAME 'build_normdet_resnet_backbone' or "
    "'build_normdet_resnet_fpn_backbone' (C4: MODEL.ROI_HEADS.NAME 'NormdetRes5ROIHeads')",
    fpn: "MODEL.FPN.NORM {!r} needs MODEL.BACKBONE.NAME 'build_normdet_resnet_fpn_backbone' or "
    "'build_normdet_retinanet_resnet_fpn_backbone'",
    box_head: "MODEL.ROI_BOX_HEAD.NORM {!r} needs MODEL.ROI_BOX_HEAD.NAME "
    "'NormdetFastRCNNConvFCHead'",
    mask_head: "MODEL.ROI_MASK_HEAD.NORM {!r} needs MODEL.ROI_MASK_HEAD.NAME "
    "'NormdetMaskRCNNConvUpsampleHead'",
    retinanet: "MODEL.RETINANET.NORM {!r} needs MODEL.META_ARCHITECTURE 'NormdetRetinaNet'",
}


def _explained(get_norm: Callable, advice: str) -> Callable:
    @functools.wraps(get_norm)
    def explained(norm, out_channels):
        try:
            return get_norm(norm, out_channels)
        except KeyError:
            raise NormdetError(
                f"{advice.format(norm)}: detectron2's own builder knows no such norm "
                "(normdet.set_norm(cfg, ...) sets the builders too)"
            ) from None

    explained.explains = True
    return explained


def explain_stock_refusals() -> None:
    """Make detectron2's builders name ours when they meet an unknown norm. Idempotent."""
    for module, advice in _ADVICE.items():
        if not hasattr(module.get_norm, "explains"):
            module.get_norm = _explained(module.get_norm, advice)
