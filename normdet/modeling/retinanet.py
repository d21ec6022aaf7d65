"""RetinaNet, the convolutions of its head normalized."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..keys import norm_option
from ..options import NormOption
from .dress import without_norms
from .ignored import in_ignored
from .lean import lean


def _normalize_subnet(subnet: nn.Sequential, option: NormOption, levels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for conv in subnet:
        if isinstance(conv, nn.Conv2d):
            norm = option.build_norm(conv.out_channels, activate=True, levels=levels)
            # detectron2 keeps the bias and gives the activation a place: so do the keys.
            layers += [option.build_weight(conv), norm, nn.Identity()]
    return nn.Sequential(*layers)


def normalize_retinanet_head(head: RetinaNetHead, option: NormOption, levels: int) -> RetinaNetHead:
    """Normalize detectron2's RetinaNet head, built without norms, in place.

    Args:
        levels: how many feature maps share it; batch statistics are kept for each.
    """
    if option:
        head.cls_subnet = _normalize_subnet(head.cls_subnet, option, levels)
        head.bbox_subnet = _normalize_subnet(head.bbox_subnet, option, levels)
    return head


@META_ARCH_REGISTRY.register()
class NormdetRetinaNet(RetinaNet):
    """detectron2's `RetinaNet` for any norm option in `MODEL.RETINANET.NORM`."""

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(without_norms(cfg, "MODEL.RETINANET.NORM"))
        levels = len(cfg.MODEL.RETINANET.IN_FEATURES)
        normalize_retinanet_head(ret["head"], norm_option(cfg, "retinanet_head"), levels)
        lean(ret["head"], cfg.MODEL.NORMDET.RECOMPUTE)
        return ret

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As detectron2 does; anchors in ignored pixels are no background."""
        labels, matched = super().label_anchors(anchors, gt_instances)
        boxes = Boxes.cat(anchors).tensor
        for label, target in zip(labels, gt_instances, strict=True):
            ignored = in_ignored(boxes, target)
            if ignored is not None:
                label[(label == self.num_classes) & ignored] = -1
        return labels, matched
