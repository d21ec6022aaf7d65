"""The box head, its convolutions and its fully connected layers normalized."""

from detectron2.config import configurable
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead

from ..keys import norm_option
from ..options import NormOption
from .dress import dress_conv, dress_pair, without_norms
from .lean import lean


def normalize_box_head(
    head: FastRCNNConvFCHead, option: NormOption, fc_option: NormOption
) -> FastRCNNConvFCHead:
    """Normalize detectron2's box head, built without norms, in place.

    Args:
        option: for the convolutions.
        fc_option: for the fully connected layers: `(N, C)`, one value per channel.
    """
    head.conv_norm_relus[:] = [
        dress_conv(head, conv, option, activate=True) for conv in head.conv_norm_relus
    ]
    for k, fc in enumerate(head.fcs, start=1):
        dress_pair(head, f"fc{k}", f"fc_relu{k}", fc_option, fc.out_features, dims=0)
    return head


@ROI_BOX_HEAD_REGISTRY.register()
class NormdetFastRCNNConvFCHead(FastRCNNConvFCHead):
    """detectron2's `FastRCNNConvFCHead` for any norm options.

    `MODEL.ROI_BOX_HEAD.NORM` for its convolutions, `MODEL.NORMDET.BOX_FC_NORM` for its FC layers.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        norm: NormOption,
        fc_norm: NormOption,
        recompute: bool = False,
        **kwargs,
    ):
        super().__init__(input_shape, **kwargs)
        lean(normalize_box_head(self, norm, fc_norm), recompute)

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(without_norms(cfg, "MODEL.ROI_BOX_HEAD.NORM"), input_shape)
        return {
            **ret,
            "norm": norm_option(cfg, "box_head"),
            "fc_norm": norm_option(cfg, "box_fc"),
            "recompute": cfg.MODEL.NORMDET.RECOMPUTE,
        }
