"""RetinaNet, the convolutions of its head normalized."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..keys import norm_option
from ..ops.padded import Padded, crops, plain, sizes
from ..options import NormOption
from .dress import without_norms
from .ignored import in_ignored
from .lean import lean
from .padding import IgnoringPadding


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

    @configurable
    def __init__(self, *, ignore_padding: bool = False, **kwargs):
        super().__init__(**kwargs)
        if ignore_padding:
            self.__class__ = _ByImage

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(without_norms(cfg, "MODEL.RETINANET.NORM"))
        levels = len(cfg.MODEL.RETINANET.IN_FEATURES)
        normalize_retinanet_head(ret["head"], norm_option(cfg, "retinanet_head"), levels)
        lean(ret["head"], cfg.MODEL.NORMDET.RECOMPUTE)
        return {**ret, "ignore_padding": cfg.MODEL.NORMDET.IGNORE_PADDING}

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


class _ByImage(IgnoringPadding, NormdetRetinaNet):
    """A RetinaNet whose head sees a batch at once, and whose anchors are those inside each image.

    TorchScript cannot compile it, so that it is a class of its own.
    """

    ignores_padding = True

    def forward_training(self, images, features, predictions, gt_instances):
        """As detectron2 does; anchors outside an image are neither matched nor trained."""
        if not isinstance(images.tensor, Padded):
            return super().forward_training(images, features, predictions, gt_instances)
        logits, deltas = self._transpose_dense_predictions(
            [[plain(x) for x in level] for level in predictions], [self.num_classes, 4]
        )
        anchors = self.anchor_generator(features)
        labels, boxes = [], []
        for n, target in enumerate(gt_instances):
            inside = [self._inside(x, n) for x in features]
            own = [Boxes(a.tensor[i]) for a, i in zip(anchors, inside, strict=True)]
            (found,), (matched,) = self.label_anchors(own, [target])
            inside = torch.cat(inside)
            labels.append(found.new_full(inside.shape, -1).masked_scatter_(inside, found))
            rows = inside[:, None].expand(-1, matched.shape[1])
            boxes.append(matched.new_zeros(rows.shape).masked_scatter_(rows, matched))
        return self.losses(anchors, logits, labels, deltas, boxes)

    def _inside(self, x: Padded, n: int) -> Tensor:
        """Which anchors of a level are of image `n`, in their order."""
        height, width = sizes(x)[n]
        cells = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
        cells[:height, :width] = True
        return cells.flatten().repeat_interleave(self.anchor_generator.num_anchors[0])

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """As detectron2 does, each image by itself."""
        if not isinstance(images.tensor, Padded):
            return super().forward_inference(images, features, predictions)
        results = []
        for n, size in enumerate(images.image_sizes):
            one = ImageList(plain(images.tensor)[n : n + 1], [size])
            maps = [crops(x)[n] for x in features]
            found = [[crops(x)[n] for x in level] for level in predictions]
            results += super().forward_inference(one, maps, found)
        return results
