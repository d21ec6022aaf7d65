"""The outputs of each part of a detector on given regions, to compare two detectors."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.layers import CNNBlockBase
from detectron2.structures import Boxes
from torch import Tensor, nn

from normdet.parts import owner

# The number of regions per image on which heads are compared: the detector's best proposals.
REGIONS = 32


class Views:
    """Runs the parts of a detector whose weights were loaded.

    Args:
        model: a GeneralizedRCNN or RetinaNet.
        loaded: names of the tensors that were loaded. A part without any is left out.

    Attributes:
        blocks: the backbone's stem and residual blocks, by name: `stem`, `res2.0`, ...
    """

    def __init__(self, model: nn.Module, loaded: Iterable[str]):
        parts = {owner(name).name for name in loaded}
        self.model = model
        self._fpn = "fpn" in parts or not hasattr(model.backbone, "bottom_up")
        self._rpn = "rpn_head" in parts
        self._box = "box_predictor" in parts
        self._mask = not parts.isdisjoint(("mask_head", "mask_deconv", "mask_predictor"))
        self._keypoint = "keypoint_head" in parts
        self._retinanet = "retinanet_head" in parts
        bottom = getattr(model.backbone, "bottom_up", model.backbone)
        self.blocks = {
            name.replace("stages.", ""): block
            for name, block in bottom.named_modules()
            if isinstance(block, CNNBlockBase)
        }

    @torch.no_grad()
    def regions(self, images: Tensor) -> list[Boxes]:
        """The detector's best proposals on `(N, 3, H, W)`, if it was trained to make some."""
        if not (self._rpn and (self._box or self._mask or self._keypoint)):
            return []
        batch = self._preprocess(images)
        features = self.model.backbone(batch.tensor)
        proposals, _ = self.model.proposal_generator(batch, features, None)
        return [found.proposal_boxes[:REGIONS] for found in proposals]

    def __call__(self, images: Tensor, regions: Sequence[Boxes]) -> dict[str, Tensor]:
        """The outputs of each part on `(N, 3, H, W)` pixels and on the regions of each image."""
        with self._recorded() as outputs:
            features = self.model.backbone(self._preprocess(images).tensor)
            if not self._fpn:
                return outputs
            outputs.update({f"feature {name}": value for name, value in features.items()})
            if self._rpn:
                generator = self.model.proposal_generator
                logits, deltas = generator.rpn_head([features[f] for f in generator.in_features])
                outputs.update(_numbered("rpn objectness", logits))
                outputs.update(_numbered("rpn box", deltas))
            if self._retinanet:
                found = self.model.head([features[f] for f in self.model.head_in_features])
                for what, levels in zip(("class", "box"), found, strict=True):
                    outputs.update(_numbered(f"retinanet {what}", levels))
            if regions:
                outputs.update(self._heads(features, list(regions)))
        return outputs

    def _heads(self, features: dict[str, Tensor], regions: list[Boxes]) -> dict[str, Tensor]:
        heads, outputs = self.model.roi_heads, {}
        if hasattr(heads, "res5"):
            maps = [features[f] for f in heads.in_features]
            shared = heads._shared_roi_transform(maps, regions)
            if self._box:
                scores, deltas = heads.box_predictor(shared.mean(dim=[2, 3]))
                outputs |= {"box head": shared, "box class": scores, "box delta": deltas}
            if self._mask:
                outputs["mask"] = heads.mask_head.layers(shared)
            return outputs
        if self._box:
            pooled = heads.box_pooler([features[f] for f in heads.box_in_features], regions)
            hidden = heads.box_head(pooled)
            scores, deltas = heads.box_predictor(hidden)
            outputs |= {"box head": hidden, "box class": scores, "box delta": deltas}
        for part, wanted in (("mask", self._mask), ("keypoint", self._keypoint)):
            if wanted:
                pooler = getattr(heads, f"{part}_pooler")
                maps = [features[f] for f in getattr(heads, f"{part}_in_features")]
                outputs[part] = getattr(heads, f"{part}_head").layers(pooler(maps, regions))
        return outputs

    def _preprocess(self, images: Tensor):
        return self.model.preprocess_image([{"image": image} for image in images])

    @contextmanager
    def _recorded(self) -> Iterator[dict[str, Tensor]]:
        """Collects the outputs of the residual blocks."""
        outputs: dict[str, Tensor] = {}

        def record(name):
            return lambda block, inputs, output: outputs.__setitem__(name, output)

        hooks = [b.register_forward_hook(record(name)) for name, b in self.blocks.items()]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()


def _numbered(name: str, values: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name} {level}": value for level, value in enumerate(values)}
