"""`MODEL.NORMDET.IGNORE_PADDING`: each image of a batch gives the same results as alone.

The detector marks the batch with its images' sizes (:mod:`normdet.ops.padded`), and every map of
backbone, FPN and dense heads knows from then on where its images end. Anchors in the padding take
no part. Heads on regions get ordinary maps, whose edges are those of the image.
"""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ..errors import NormdetError
from ..ops import recording
from ..ops.padded import Extents, Padded, crops, padded, with_edges
from .ignored import NormdetRPN

_NOT_EXPORTED = (
    "MODEL.NORMDET.IGNORE_PADDING True cannot be traced, scripted or exported: export with False; "
    "images whose sides the strides divide then give the same"
)


def marked(images: ImageList) -> ImageList:
    """The batch, its tensor a :class:`Padded` if an image is smaller than it.

    Raises:
        NormdetError: the model is being traced, so sizes are not numbers.
    """
    if recording():
        raise NormdetError(_NOT_EXPORTED)
    size = tuple(images.tensor.shape[-2:])
    if any(tuple(own) != size for own in images.image_sizes):
        images.tensor = padded(images.tensor, Extents(images.image_sizes, size), clean=True)
    return images


class IgnoringPadding(nn.Module):
    """Mixin of a detector: its batches are marked if `ignores_padding`."""

    ignores_padding = False

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """As detectron2 does; see there."""
        images = super().preprocess_image(batched_inputs)
        return marked(images) if self.ignores_padding else images

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` asks a module for, before it fails in words of its own.

        Raises:
            NormdetError: it ignores padding.
        """
        if self.ignores_padding:
            raise NormdetError(_NOT_EXPORTED)
        return self


class _WithRegions(IgnoringPadding):
    """A detector of two stages."""

    @configurable
    def __init__(self, *, ignore_padding: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.ignores_padding = ignore_padding
        if ignore_padding:
            self.backbone.register_forward_hook(_ordinary)
            if self.proposal_generator is not None:
                each_image_by_itself(self.proposal_generator)

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "ignore_padding": cfg.MODEL.NORMDET.IGNORE_PADDING}


def _ordinary(backbone: nn.Module, inputs: tuple, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maps of a backbone as ordinary tensors."""
    if isinstance(inputs[0], Padded):
        check_known(maps)
        return {name: with_edges(x) for name, x in maps.items()}
    return maps


def check_known(maps: dict[str, Tensor]) -> None:
    """Refuse maps of a backbone that lost its images' sizes on the way.

    Raises:
        NormdetError: naming the map.
    """
    for name, x in maps.items():
        if not isinstance(x, Padded):
            raise NormdetError(
                f"the backbone's map {name} does not tell where its images end: it has layers "
                "other than convolutions, norms, activations and pooling; this network needs "
                "MODEL.NORMDET.IGNORE_PADDING False"
            )


@META_ARCH_REGISTRY.register()
class NormdetGeneralizedRCNN(_WithRegions, GeneralizedRCNN):
    """detectron2's `GeneralizedRCNN` for `MODEL.NORMDET.IGNORE_PADDING`."""


@META_ARCH_REGISTRY.register()
class NormdetPanopticFPN(_WithRegions, PanopticFPN):
    """detectron2's `PanopticFPN` for `MODEL.NORMDET.IGNORE_PADDING`; not in its semantic head."""


class _ByImage(NormdetRPN):
    """An RPN whose head sees a whole batch, and whose other steps see each image by itself."""

    def forward(self, images: ImageList, features: dict[str, Tensor], gt_instances=None):
        """As detectron2 does; see there. Losses are means over the images."""
        if not isinstance(images.tensor, Padded):
            return super().forward(images, features, gt_instances)
        maps = [padded(features[name], images.tensor.extents) for name in self.in_features]
        logits, deltas = ([crops(x) for x in output] for output in self.rpn_head(maps))
        proposals, losses = [], []
        for n, size in enumerate(images.image_sizes):
            found, lost = self._one(
                [level[n] for level in logits],
                [level[n] for level in deltas],
                size,
                None if gt_instances is None else gt_instances[n],
            )
            proposals += found
            losses.append(lost)
        return proposals, {
            name: torch.stack([lost[name] for lost in losses]).mean() for name in losses[0]
        }

    def _one(
        self, logits: list[Tensor], deltas: list[Tensor], size: tuple[int, int],
        target: Instances | None,
    ):  # fmt: skip
        """Proposals and losses of one image, from its part of the head's outputs."""
        anchors = self.anchor_generator(logits)
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [
            x.unflatten(1, (-1, self.anchor_generator.box_dim)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for x in deltas
        ]
        losses = {}
        if self.training:
            labels, boxes = self.label_and_sample_anchors(anchors, [target])
            losses = self.losses(anchors, logits, labels, deltas, boxes)
        return self.predict_proposals(anchors, logits, deltas, [size]), losses


def each_image_by_itself(rpn: RPN) -> RPN:
    """Make an RPN use only the anchors inside each image; return it.

    Raises:
        NormdetError: it is of another class than detectron2's or ours.
    """
    if type(rpn) not in (RPN, NormdetRPN):
        raise NormdetError(
            f"MODEL.NORMDET.IGNORE_PADDING has no form for the proposal generator "
            f"{type(rpn).__name__}, only for RPN"
        )
    rpn.__class__ = _ByImage
    return rpn
