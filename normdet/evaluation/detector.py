"""A trained detector on slices: windowed, cut into tiles, in batches, and merged."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances

from normdet.data.channels import to_format
from normdet.data.rle import Piece
from normdet.data.slices import Slice
from normdet.data.window import apply_window
from normdet.evaluation.image_statistics import OneImage, cores_of
from normdet.evaluation.tiles import Box, Detection, merge, tile_boxes

# detectron2's model interface: dicts with an image (C, H, W) in, dicts with "instances" out.
Model = Callable[[list[dict]], list[dict]]
# The values that become black and white; None if values stay as they are.
Limits = tuple[float, float] | None
Windowed = tuple[Slice, Limits]
# Where tiles take their image's statistics, tiles of so many pixels as the network sees them pass
# at once through all but its heads on regions: as much as one image of 2048 x 2048.
_AT_ONCE = 2048 * 2048


class Detector:
    """Finds objects in slices, as detectron2's `DefaultPredictor` does in images.

    Args:
        model: built, loaded and in evaluation mode; called under `no_grad`.
        cfg: how its input looks (`INPUT.FORMAT`, `INPUT.MIN_SIZE_TEST`, ...).
        tile: pixels of a tile's side, 0 for whole images.
        overlap: pixels that neighbouring tiles have in common.
        batch: images or tiles per step.
        threshold: objects with lower scores are left out.
        statistics: whose the statistics of a tile are: its "own", or its "image"'s, which takes two
            passes (:class:`normdet.evaluation.image_statistics.OneImage`).
    """

    def __init__(
        self,
        model: Model,
        cfg: CfgNode,
        *,
        tile: int = 0,
        overlap: int = 64,
        batch: int = 1,
        threshold: float = 0.0,
        statistics: str = "own",
    ):
        self._model = model
        self._format = cfg.INPUT.FORMAT
        short, most = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._resize = T.ResizeShortestEdge([short, short], most)
        self._tile, self._overlap = tile, overlap
        self._batch, self._threshold = batch, threshold
        self._shares = statistics == "image"

    def __call__(self, pixels: np.ndarray) -> list[Detection]:
        """The objects of one image `(H, W)` or `(H, W, 3)` RGB of 8 bits, best score first."""
        image = Slice(pixels, "", None, None, None, source=Path())
        ((_, _, detections),) = self.stream([(image, None)])
        return detections

    def stream(self, slices: Iterable[Windowed]) -> Iterator[tuple[Slice, Limits, list[Detection]]]:
        """Yield each slice with its limits and its objects, in order; slices share batches.

        Only the slices whose tiles are in the batch are in memory.

        Args:
            slices: with limits, of :func:`normdet.medical.windowed.read_windowed`.
        """
        queue: list[tuple[_Work, int]] = []
        for item, limits in slices:
            tiles = tile_boxes(*item.pixels.shape[:2], self._tile, self._overlap)
            work = _Work(item, limits, tiles)
            if self._shares and len(tiles) > 1:
                yield from self._step(queue)
                queue = []
                yield self._with_image_statistics(work)
                continue
            for index in range(len(work.tiles)):
                queue.append((work, index))
                if len(queue) == self._batch:
                    yield from self._step(queue)
                    queue = []
        yield from self._step(queue)

    def _step(self, queue: list[tuple["_Work", int]]) -> Iterator[tuple]:
        inputs = [self._input(work, work.tiles[index]) for work, index in queue]
        with torch.no_grad():
            outputs = self._model(inputs) if inputs else []
        for (work, index), output in zip(queue, outputs, strict=True):
            self._keep(work, index, output)
            if len(work.found) == len(work.tiles):
                yield work.done()

    def _with_image_statistics(self, work: "_Work") -> tuple:
        image, cores = OneImage(self._model), cores_of(work.tiles)

        def inputs(some: Sequence[int]) -> tuple[list[dict], list]:
            return [self._input(work, work.tiles[k]) for k in some], [cores[k] for k in some]

        with torch.no_grad():
            for some in self._groups(work):
                if not image.gather(*inputs(some)):
                    break  # a network of fixed statistics alone
            for start in range(0, len(cores), self._batch):
                some = range(start, min(start + self._batch, len(cores)))
                for index, output in zip(some, image(*inputs(some)), strict=True):
                    self._keep(work, index, output)
        return work.done()

    def _groups(self, work: "_Work") -> list[list[int]]:
        """The tiles that pass at once while moments are gathered: each group resembles the image.

        Tiles that pass together are normalized by their common moments, which should be the
        image's. So each group has its share of the tiles of high and of low contrast.
        """
        _, height, width = self._input(work, work.tiles[0])["image"].shape
        count = -(-len(work.tiles) // max(self._batch, _AT_ONCE // (height * width), 1))
        contrast = [work.slice.pixels[y0:y1, x0:x1].std() for x0, y0, x1, y1 in work.tiles]
        order = np.argsort(contrast, kind="stable").tolist()
        return [order[k::count] for k in range(count)]

    def _keep(self, work: "_Work", index: int, output: dict) -> None:
        instances = output["instances"].to("cpu")
        work.found.append(detections_of(instances, work.tiles[index], self._threshold))

    def _input(self, work: "_Work", tile: Box) -> dict:
        x0, y0, x1, y1 = tile
        pixels = apply_window(work.slice.pixels[y0:y1, x0:x1], work.limits)
        # Deep pixels that no window brought to 8 bits reach the model in float32, as in training.
        pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
        image = to_format(pixels, self._format)
        image = self._resize.get_transform(image).apply_image(image)
        # Not every transform keeps the one channel of a grey image.
        image = image.reshape(*image.shape[:2], -1).astype("float32").transpose(2, 0, 1)
        tensor = torch.as_tensor(np.ascontiguousarray(image))
        return {"image": tensor, "height": y1 - y0, "width": x1 - x0}


@dataclass
class _Work:
    """A slice in progress, with an entry of `found` for each tile that is done."""

    slice: Slice
    limits: Limits
    tiles: list[Box]
    found: list[list[Detection]] = field(default_factory=list)

    def done(self) -> tuple[Slice, Limits, list[Detection]]:
        """The slice with its limits and its objects."""
        return self.slice, self.limits, merge(self.tiles, self.found)


def detections_of(instances: Instances, tile: Box, threshold: float = 0.0) -> list[Detection]:
    """The instances that a model found in a tile, in coordinates of the image.

    An empty mask is no object. Without masks the filled box is used.
    """
    x, y, right, bottom = tile
    has_mask = instances.has("pred_masks")
    result = []
    for index in torch.nonzero(instances.scores >= threshold).flatten().tolist():
        box = instances.pred_boxes.tensor[index].tolist()
        if has_mask:
            piece = Piece.of(instances.pred_masks[index].numpy(), x, y)
        else:
            piece = _filled(box, right - x, bottom - y, x, y)
        if piece.mask.size:
            left, top, far, low = box
            result.append(
                Detection(
                    (left + x, top + y, far + x, low + y),
                    float(instances.scores[index]),
                    int(instances.pred_classes[index]),
                    piece,
                    has_mask,
                )
            )
    return result


def _filled(box: list[float], width: int, height: int, x: int, y: int) -> Piece:
    x0, y0, x1, y1 = np.round(box).astype(int).clip(0, (width, height) * 2).tolist()
    return Piece(x + x0, y + y0, np.ones((y1 - y0, x1 - x0), bool))
