"""The keypoint head, its convolutions normalized."""

from detectron2.config import configurable
from detectron2.modeling.roi_heads import ROI_KEYPOINT_HEAD_REGISTRY, KRCNNConvDeconvUpsampleHead

from ..keys import norm_option
from ..options import NormOption
from .dress import dress_pair
from .lean import lean


def normalize_keypoint_head(
    head: KRCNNConvDeconvUpsampleHead, option: NormOption
) -> KRCNNConvDeconvUpsampleHead:
    """Normalize detectron2's keypoint head in place; its deconvolution predicts and has none."""
    convs = [name for name, _ in head.named_children() if name.startswith("conv_fcn_relu")]
    for k in range(1, len(convs) + 1):
        conv = getattr(head, f"conv_fcn{k}")
        dress_pair(head, f"conv_fcn{k}", f"conv_fcn_relu{k}", option, conv.out_channels)
    return head


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class NormdetKRCNNConvDeconvUpsampleHead(KRCNNConvDeconvUpsampleHead):
    """detectron2's `KRCNNConvDeconvUpsampleHead` for any option in `NORMDET.KEYPOINT_HEAD_NORM`."""

    @configurable
    def __init__(self, input_shape, *, norm: NormOption, recompute: bool = False, **kwargs):
        super().__init__(input_shape, **kwargs)
        lean(normalize_keypoint_head(self, norm), recompute)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        return {
            **ret,
            "norm": norm_option(cfg, "keypoint_head"),
            "recompute": cfg.MODEL.NORMDET.RECOMPUTE,
        }
