"""Regions that are neither object nor background, where no part is trained to find nothing.

These are crowds, and pixels that annotators left open (void). RPN, box head and RetinaNet do not
count an anchor or proposal as background if more than `SHARE` of it is in such regions. Images
without such regions train as in detectron2, to the last bit.
"""

from collections.abc import Sequence
from typing import Final

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

# The share of a box in ignored pixels above which it is ignored.
SHARE = 0.5


def in_ignored(boxes: Tensor, target: Instances) -> Tensor | None:
    """Which boxes `(N, 4)` are mostly in pixels that `target` ignores; None if it ignores none.

    A target of :class:`normdet.data.ignored.PartlyIgnored` ignores some.

    Cost: one running sum over the image and four look-ups per box.
    """
    ignored = getattr(target, "ignored", None)
    if ignored is None:
        return None
    height, width = ignored.shape
    sums = torch.zeros(height + 1, width + 1, dtype=torch.int32, device=ignored.device)
    sums[1:, 1:] = ignored.int().cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    limits = torch.tensor([width, height, width, height], device=boxes.device)
    corners = torch.minimum(boxes.nan_to_num(0).round().clamp(min=0), limits).long()
    x0, y0, x1, y1 = corners.unbind(1)
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    area = ((x1 - x0) * (y1 - y0)).clamp(min=1)
    return inside > SHARE * area


@PROPOSAL_GENERATOR_REGISTRY.register()
class NormdetRPN(RPN):
    """detectron2's `RPN`; anchors in ignored pixels are no negatives."""

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As detectron2 does; see there."""
        boxes = Boxes.cat(anchors).tensor
        # Labels are sampled image by image, in this order.
        self._open = iter([in_ignored(boxes, target) for target in gt_instances])
        return super().label_and_sample_anchors(anchors, gt_instances)

    def _subsample_labels(self, label: Tensor) -> Tensor:
        ignored = next(self._open)
        if ignored is not None:
            label[(label == 0) & ignored] = -1
        return super()._subsample_labels(label)


class IgnoringProposals(ROIHeads):
    """ROI heads whose proposals in ignored pixels are no background."""

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """As detectron2 does; see there."""
        pairs = zip(proposals, targets, strict=True)
        kept = [self._counted(one, target) for one, target in pairs]
        return super().label_and_sample_proposals(kept, targets)

    def _counted(self, proposals: Instances, target: Instances) -> Instances:
        ignored = in_ignored(proposals.proposal_boxes.tensor, target)
        if ignored is None:
            return proposals
        if len(target):
            overlaps = pairwise_iou(target.gt_boxes, proposals.proposal_boxes).max(dim=0).values
            # Below the first threshold a proposal is background.
            ignored &= overlaps < _first_threshold(self.proposal_matcher.thresholds)
        return proposals[~ignored]


def _first_threshold(thresholds: Sequence[float]) -> float:
    """The lowest threshold of detectron2's matcher, whose list has infinity at both ends."""
    return thresholds[1]


@ROI_HEADS_REGISTRY.register()
class NormdetStandardROIHeads(IgnoringProposals, StandardROIHeads):
    """detectron2's `StandardROIHeads`; proposals in ignored pixels are no background."""

    # Constants for TorchScript, which detectron2 annotates in its own class alone.
    mask_on: Final[bool]
    keypoint_on: Final[bool]
