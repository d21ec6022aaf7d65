"""Stock configs with our options: detectron2's detectors take our parts if they need them.

With `add_normdet_config(cfg)` and `MODEL.RESNETS.NORM: FRN+TLU` a stock config builds the detector
that :func:`normdet.set_norm` would have built, in `DefaultTrainer`, `DefaultPredictor` and
`build_model`. detectron2 alone builds a config that it can honour.

A stock builder that is called directly looks names up in a closed table and raises
`KeyError: 'FRN+TLU'`. This module makes it raise an error that says which builder to use.
"""

import functools
from collections.abc import Callable
from types import ModuleType

from detectron2.config import CfgNode
from detectron2.modeling.backbone import fpn, resnet
from detectron2.modeling.meta_arch import panoptic_fpn, rcnn, retinanet, semantic_seg
from detectron2.modeling.roi_heads import box_head, mask_head

from ..errors import NormdetError
from ..files.words import listed
from ..keys import AS_BACKBONE, get, use_normdet_parts
from ..options import NormOption
from ..parts import NORMED
from ..solver import decay_no_norm_in_detectron2
from .retinanet import NormdetRetinaNet

# The names that detectron2's `get_norm` knows.
STOCK_NORMS = (
    "", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN"
)  # fmt: skip

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
    semantic_seg: "MODEL.SEM_SEG_HEAD.NORM {!r} needs MODEL.SEM_SEG_HEAD.NAME "
    "'NormdetSemSegFPNHead'",
}
_DETECTORS = (
    rcnn.GeneralizedRCNN, rcnn.ProposalNetwork, panoptic_fpn.PanopticFPN, retinanet.RetinaNet,
    semantic_seg.SemanticSegmentor,
)  # fmt: skip


def asks_for_ours(cfg: CfgNode) -> bool:
    """Whether a config has a norm that detectron2 alone would refuse or ignore."""
    if "NORMDET" not in cfg.MODEL:
        return False
    if cfg.MODEL.NORMDET.IGNORE_PADDING:
        return True
    for key in (part.key for part in NORMED.values()):
        fine = ("", AS_BACKBONE) if key.startswith("MODEL.NORMDET.") else STOCK_NORMS
        if get(cfg, key) not in fine:
            return True
    return False


def _with_our_parts(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    use_normdet_parts(cfg)
    return cfg


def _taking_our_names(from_config: Callable) -> Callable:
    """A detector's `from_config` that builds our parts if the config asks for them."""

    @functools.wraps(from_config)
    def build(cls, cfg, *args, **kwargs):
        if asks_for_ours(cfg):
            cfg = _with_our_parts(cfg)
            if cfg.MODEL.NORMDET.IGNORE_PADDING and cls in _DETECTORS:
                raise NormdetError(
                    f"MODEL.NORMDET.IGNORE_PADDING needs another detector than {cls.__name__}: "
                    "normdet.set_norm or normdet.keys.use_normdet_parts name it"
                )
            if cls is retinanet.RetinaNet:
                parts = NormdetRetinaNet.from_config(cfg, *args, **kwargs)
                return {key: parts[key] for key in parts if key != "ignore_padding"}  # ours alone
        return from_config(cls, cfg, *args, **kwargs)

    build.takes_ours = True
    return build


def _explained(get_norm: Callable, advice: str) -> Callable:
    @functools.wraps(get_norm)
    def explained(norm, out_channels):
        _refuse_what_a_callable_loses(norm)
        try:
            return get_norm(norm, out_channels)
        except KeyError:
            raise NormdetError(
                f"{advice.format(norm)}: detectron2's own builder knows no such norm "
                "(normdet.set_norm(cfg, ...) sets the builders too; in a LazyConfig put the model "
                "into L(normdet.normalize)(model=..., norm=...))"
            ) from None

    explained.explains = True
    return explained


def _refuse_what_a_callable_loses(norm: object) -> None:
    """Refuse options that detectron2's blocks, which use ReLU and plain weights, would lose."""
    called = norm.func if isinstance(norm, functools.partial) else norm
    option = called if isinstance(called, NormOption) else getattr(called, "__self__", None)
    if not isinstance(option, NormOption):
        return
    lost = [name for name in (option.activation, option.weight, option.init)
            if name not in ("", "ReLU")]  # fmt: skip
    if lost:
        raise NormdetError(
            f"a callable for {str(option)!r} makes its norms and loses {listed(lost)}: build "
            f"the model without it and give it to normdet.normalize(model, {str(option)!r})"
        )


def teach_stock_detectors() -> None:
    """Let detectron2's detectors, builders and optimizer take our names. Idempotent."""
    for module, advice in _ADVICE.items():
        if not hasattr(module.get_norm, "explains"):
            module.get_norm = _explained(module.get_norm, advice)
    for detector in _DETECTORS:
        from_config = detector.__dict__["from_config"].__func__
        if not hasattr(from_config, "takes_ours"):
            detector.from_config = classmethod(_taking_our_names(from_config))
    decay_no_norm_in_detectron2()
