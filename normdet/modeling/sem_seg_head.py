"""The semantic head of panoptic and semantic FPN, its convolutions normalized."""

from detectron2.modeling.meta_arch import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn

from ..keys import norm_option
from ..options import NormOption
from .dress import dress_conv, without_norms
from .lean import lean


def normalize_sem_seg_head(head: SemSegFPNHead, option: NormOption) -> SemSegFPNHead:
    """Normalize detectron2's semantic head, built without norms, in place."""
    if option:
        for scale in head.scale_heads:
            for conv in list(scale):
                if isinstance(conv, nn.Conv2d):
                    dress_conv(scale, conv, option, activate=True)
    return head


@SEM_SEG_HEADS_REGISTRY.register()
class NormdetSemSegFPNHead(SemSegFPNHead):
    """detectron2's `SemSegFPNHead` for any norm option in `MODEL.SEM_SEG_HEAD.NORM`."""

    def __init__(self, cfg, input_shape):
        super().__init__(without_norms(cfg, "MODEL.SEM_SEG_HEAD.NORM"), input_shape)
        normalize_sem_seg_head(self, norm_option(cfg, "sem_seg_head"))
        lean(self, cfg.MODEL.NORMDET.RECOMPUTE)
