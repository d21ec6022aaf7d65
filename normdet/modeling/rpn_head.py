"""The RPN head, its hidden convolutions normalized."""

from detectron2.config import configurable
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from torch import nn

from ..keys import norm_option
from ..options import NormOption
from .dress import dress_conv
from .lean import lean


def normalize_rpn_head(head: StandardRPNHead, option: NormOption, levels: int) -> StandardRPNHead:
    """Normalize detectron2's RPN head in place.

    Args:
        levels: how many feature maps share it; batch statistics are kept for each.
    """
    if isinstance(head.conv, nn.Sequential):
        for conv in list(head.conv):
            dress_conv(head.conv, conv, option, activate=True, levels=levels)
    else:
        dress_conv(head, head.conv, option, activate=True, levels=levels)
    return head


@RPN_HEAD_REGISTRY.register()
class NormdetStandardRPNHead(StandardRPNHead):
    """detectron2's `StandardRPNHead` for any norm option in `MODEL.NORMDET.RPN_HEAD_NORM`."""

    @configurable
    def __init__(self, *, norm: NormOption, levels: int, recompute: bool = False, **kwargs):
        super().__init__(**kwargs)
        lean(normalize_rpn_head(self, norm, levels), recompute)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        return {
            **ret,
            "norm": norm_option(cfg, "rpn_head"),
            "levels": len(input_shape),
            "recompute": cfg.MODEL.NORMDET.RECOMPUTE,
        }
