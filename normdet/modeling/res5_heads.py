"""The C4 detector's heads, whose res5 runs on every region."""

from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

from ..keys import norm_option
from .dress import without_norms
from .fold import fold_fixed
from .ignored import IgnoringProposals
from .lean import lean
from .resnet import normalize_blocks


@ROI_HEADS_REGISTRY.register()
class NormdetRes5ROIHeads(IgnoringProposals, Res5ROIHeads):
    """detectron2's `Res5ROIHeads`; `MODEL.NORMDET.RES5_HEAD_NORM` or else the backbone's norm."""

    @classmethod
    def _build_res5_block(cls, cfg):
        blocks, channels = super()._build_res5_block(without_norms(cfg, "MODEL.RESNETS.NORM"))
        option, depth = norm_option(cfg, "res5_head"), cfg.MODEL.RESNETS.DEPTH
        stage = normalize_blocks(blocks, option, depth)
        fold_fixed(stage, cfg.MODEL.NORMDET.FOLD_FIXED)
        return lean(stage, cfg.MODEL.NORMDET.RECOMPUTE), channels
