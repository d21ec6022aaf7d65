"""The mask head, its convolutions and its deconvolution normalized."""

from detectron2.config import configurable
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead

from ..keys import norm_option
from ..options import NormOption
from .dress import dress_conv, dress_pair, without_norms
from .lean import lean


def normalize_mask_head(
    head: MaskRCNNConvUpsampleHead, option: NormOption, deconv_option: NormOption
) -> MaskRCNNConvUpsampleHead:
    """Normalize detectron2's mask head, built without norms, in place.

    Args:
        option: for the convolutions.
        deconv_option: for the 2x2 deconvolution before the prediction.
    """
    head.conv_norm_relus[:] = [
        dress_conv(head, conv, option, activate=True) for conv in head.conv_norm_relus
    ]
    dress_pair(head, "deconv", "deconv_relu", deconv_option, head.deconv.out_channels)
    return head


@ROI_MASK_HEAD_REGISTRY.register()
class NormdetMaskRCNNConvUpsampleHead(MaskRCNNConvUpsampleHead):
    """detectron2's `MaskRCNNConvUpsampleHead` for any norm options.

    `MODEL.ROI_MASK_HEAD.NORM` for its convolutions, `MODEL.NORMDET.MASK_DECONV_NORM` for the last.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        norm: NormOption,
        deconv_norm: NormOption,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(input_shape, **kwargs)
        lean(normalize_mask_head(self, norm, deconv_norm), recompute)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(without_norms(cfg, "MODEL.ROI_MASK_HEAD.NORM"), input_shape)
        return {
            **ret,
            "norm": norm_option(cfg, "mask_head"),
            "deconv_norm": norm_option(cfg, "mask_deconv"),
            "recompute": cfg.MODEL.NORMDET.RECOMPUTE,
        }
