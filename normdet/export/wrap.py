"""A detector, or its backbone, as a function of one tensor."""

import torch
from torch import Tensor, nn

from ..files.versions import need_export

DETECTOR, BACKBONE = "detector", "backbone"


class Pixels(nn.Module):
    """Backbone and FPN with the pixels' mean and deviation: `(N, 3, H, W)` to maps, by stride.

    `H` and `W` are multiples of the backbone's size divisibility.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        shapes = model.backbone.output_shape()
        self.names = sorted(shapes, key=lambda name: (shapes[name].stride, name))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.backbone((pixels - self.mean) / self.std)
        return tuple(maps[name] for name in self.names)


def _find(model: nn.Module, inputs: list[dict]) -> dict:
    """The objects in an image, with masks as probabilities inside their boxes."""
    if hasattr(model, "roi_heads"):
        return model.inference(inputs, do_postprocess=False)[0].get_fields()
    return model(inputs)[0]["instances"].get_fields()


class Wrapped:
    """A module that takes and returns tensors, with the names of its inputs and outputs.

    Args:
        model: a detector in inference mode.
        part: `"detector"`: one image `(C, H, W)` to boxes, scores, classes, masks, keypoints; or
            `"backbone"`: see :class:`Pixels`.
        image: an example `(C, H, W)`, its pixels as the detector reads them.
    """

    def __init__(self, model: nn.Module, part: str, image: Tensor):
        self.part = part
        if part == BACKBONE:
            self.module: nn.Module = Pixels(model)
            self.inputs, self.outputs = ("pixels",), tuple(self.module.names)
        else:
            with need_export("a whole detector"):
                from detectron2.export import TracingAdapter
            adapter = TracingAdapter(model, [{"image": image}], _find)
            with torch.no_grad():
                adapter(image)
                found = _find(model, [{"image": image}])
            self.module = adapter
            self.inputs, self.outputs = ("image",), tuple(sorted(found))
        self.strides = max(model.backbone.size_divisibility, 32)
        coarsest = max(shape.stride for shape in model.backbone.output_shape().values())
        # The least height and width, in pixels, that leave more than one row in each map.
        self.least = coarsest + 1 if part == DETECTOR else 1
        self.module.eval()

    def example(self, image: Tensor) -> Tensor:
        """An image as the module's input; a backbone's is cut to whole strides."""
        if self.part == DETECTOR:
            return image.float()
        step = self.strides
        height, width = (max(side // step, 1) * step for side in image.shape[1:])
        padded = nn.functional.pad(
            image.float(), (0, max(width - image.shape[2], 0), 0, max(height - image.shape[1], 0))
        )
        return padded[None, :, :height, :width].contiguous()

    def dynamic(self) -> dict[int, str]:
        """The dimensions of the input that may change, by name."""
        if self.part == DETECTOR:
            return {1: "height", 2: "width"}
        return {0: "batch", 2: "height", 3: "width"}

    @property
    def step(self) -> int:
        """The number that heights and widths must be multiples of."""
        return 1 if self.part == DETECTOR else self.strides
