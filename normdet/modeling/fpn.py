"""FPN whose convolutions are normalized and, as in the paper, not activated."""

from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import (
    LastLevelMaxPool,
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)
from torch import Tensor, nn

from ..keys import norm_option, stage_options
from ..options import NormOption
from .dress import dress_conv, without_norms
from .fold import fold_fixed
from .lean import lean
from .resnet import normalize_resnet


class NormLastLevelP6P7(nn.Module):
    """RetinaNet's p6 and p7, normalized; p7 sees p6 through the option's activation.

    Args:
        block: detectron2's `LastLevelP6P7`, whose convolutions it takes over.
    """

    def __init__(self, block: nn.Module, option: NormOption):
        super().__init__()
        self.num_levels = block.num_levels
        self.in_feature = block.in_feature
        self.p6 = option.build_weight(block.p6)
        self.p7 = option.build_weight(block.p7)
        self.p6.bias = self.p7.bias = None
        channels = self.p6.out_channels
        self.p6_norm = option.build_norm(channels)
        self.p6_act = option.build_activation(channels)
        self.p7_norm = option.build_norm(channels)

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6_norm(self.p6(c5))
        return [p6, self.p7_norm(self.p7(self.p6_act(p6)))]


def normalize_fpn(fpn: FPN, option: NormOption, top: NormOption) -> FPN:
    """Normalize a detectron2 FPN built without norms, in place; not its bottom-up network.

    Args:
        option: for the lateral and output convolutions.
        top: for the convolutions of RetinaNet's last levels; the max pooling of Mask R-CNN's has
            none to normalize.
    """
    for convs in (fpn.lateral_convs, fpn.output_convs):
        convs[:] = [dress_conv(fpn, conv, option, activate=False) for conv in convs]
    if top and hasattr(fpn.top_block, "p6"):
        fpn.top_block = NormLastLevelP6P7(fpn.top_block, top)
    return fpn


def _build(stock_builder, cfg, input_shape) -> FPN:
    bare = without_norms(cfg, "MODEL.RESNETS.NORM", "MODEL.FPN.NORM")
    bare.MODEL.BACKBONE.FREEZE_AT = 0
    fpn = stock_builder(bare, input_shape)
    if isinstance(fpn.top_block, LastLevelMaxPool):
        # detectron2 pools p5, which a pyramid over res2 to res4 lacks.
        fpn.top_block.in_feature = list(fpn.output_shape())[-2]
    freeze_at, depth = cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.DEPTH
    option, stages = norm_option(cfg, "backbone"), stage_options(cfg)
    normalize_resnet(fpn.bottom_up, option, freeze_at, depth=depth, stages=stages)
    normalize_fpn(fpn, norm_option(cfg, "fpn"), norm_option(cfg, "fpn_top"))
    fold_fixed(fpn, cfg.MODEL.NORMDET.FOLD_FIXED)
    return lean(fpn, cfg.MODEL.NORMDET.RECOMPUTE)


@BACKBONE_REGISTRY.register()
def build_normdet_resnet_fpn_backbone(cfg, input_shape) -> FPN:
    """detectron2's `build_resnet_fpn_backbone` for any norm options."""
    return _build(build_resnet_fpn_backbone, cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_normdet_retinanet_resnet_fpn_backbone(cfg, input_shape) -> FPN:
    """detectron2's `build_retinanet_resnet_fpn_backbone` for any norm options."""
    return _build(build_retinanet_resnet_fpn_backbone, cfg, input_shape)
