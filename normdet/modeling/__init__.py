"""detectron2's parts with any norm option; importing this registers them."""

from . import detector  # noqa: F401  (registers)
from .box_head import NormdetFastRCNNConvFCHead, normalize_box_head
from .classifier import NormdetClassifier
from .deform import use_torchvision_where_detectron2_has_none
from .describe import PartRow, describe_norms, part_of
from .fpn import (
    build_normdet_resnet_fpn_backbone,
    build_normdet_retinanet_resnet_fpn_backbone,
    normalize_fpn,
)
from .ignored import NormdetRPN, NormdetStandardROIHeads
from .keypoint_head import NormdetKRCNNConvDeconvUpsampleHead, normalize_keypoint_head
from .mask_head import NormdetMaskRCNNConvUpsampleHead, normalize_mask_head
from .padding import NormdetGeneralizedRCNN, NormdetPanopticFPN
from .res5_heads import NormdetRes5ROIHeads
from .resnet import build_normdet_resnet_backbone, normalize_resnet
from .retinanet import NormdetRetinaNet, normalize_retinanet_head
from .rpn_head import NormdetStandardRPNHead, normalize_rpn_head
from .sem_seg_head import NormdetSemSegFPNHead, normalize_sem_seg_head
from .stock import teach_stock_detectors
from .timm_backbone import (
    TimmBackbone,
    build_normdet_retinanet_timm_fpn_backbone,
    build_normdet_timm_fpn_backbone,
)

teach_stock_detectors()
use_torchvision_where_detectron2_has_none()

__all__ = [
    "NormdetClassifier",
    "NormdetFastRCNNConvFCHead",
    "NormdetGeneralizedRCNN",
    "NormdetKRCNNConvDeconvUpsampleHead",
    "NormdetMaskRCNNConvUpsampleHead",
    "NormdetPanopticFPN",
    "NormdetRPN",
    "NormdetRes5ROIHeads",
    "NormdetRetinaNet",
    "NormdetSemSegFPNHead",
    "NormdetStandardROIHeads",
    "NormdetStandardRPNHead",
    "PartRow",
    "TimmBackbone",
    "build_normdet_resnet_backbone",
    "build_normdet_resnet_fpn_backbone",
    "build_normdet_retinanet_resnet_fpn_backbone",
    "build_normdet_retinanet_timm_fpn_backbone",
    "build_normdet_timm_fpn_backbone",
    "describe_norms",
    "normalize_box_head",
    "normalize_fpn",
    "normalize_keypoint_head",
    "normalize_mask_head",
    "normalize_resnet",
    "normalize_retinanet_head",
    "normalize_rpn_head",
    "normalize_sem_seg_head",
    "part_of",
]
