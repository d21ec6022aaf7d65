"""A detector whose norms take their statistics over a whole image that it sees in tiles."""

import copy
from collections.abc import Sequence
from itertools import pairwise

from detectron2.structures import ImageList
from torch import nn

from normdet.errors import NormdetError
from normdet.evaluation.tiles import Box
from normdet.ops.padded import Extents, Padded, padded, plain
from normdet.ops.tiles import Core, ImageMoments, Tiles


class OneImage:
    """A detector of detectron2 on the tiles of one image, in two passes.

    :meth:`gather` all tiles, some at a time, then call it with them: norms of single examples in
    backbone, FPN and dense heads then take the image's statistics. What is kept between the passes
    is two numbers for each channel of each such norm. The first pass leaves out the heads on
    regions; with small ones, both took 2.1 to 2.2 times the time of one. The model itself is not
    changed.

    Args:
        model: in evaluation mode.

    Attributes:
        moments: of the image, as far as they are gathered.

    Raises:
        NormdetError: it is not built as detectron2's detectors are.
    """

    def __init__(self, model: nn.Module):
        self._model = getattr(model, "module", model)
        for name in ("preprocess_image", "backbone"):
            if not hasattr(self._model, name):
                raise NormdetError(
                    f"{type(self._model).__name__} has no {name}, as detectron2's detectors have: "
                    "it needs INPUT.TILE_STATISTICS own"
                )
        self.moments = ImageMoments()

    def gather(self, inputs: list[dict], cores: Sequence[Core]) -> int:
        """Take the moments of some tiles; returns how many norms take moments.

        Args:
            inputs: detectron2's.
            cores: of :func:`cores_of`, one for each.
        """
        model = self._model
        images = self.preprocess(inputs, cores)
        features = model.backbone(images.tensor)
        if not getattr(model, "ignores_padding", False):
            self._check(features)
        if hasattr(model, "proposal_generator"):
            model.proposal_generator(images, features, None)
        elif hasattr(model, "head_in_features"):
            model.head([features[name] for name in model.head_in_features])
        return len(self.moments)

    def __call__(self, inputs: list[dict], cores: Sequence[Core]) -> list[dict]:
        """What the model finds in some tiles, given the image's statistics.

        Args:
            inputs: as for :meth:`gather`.
            cores: as for :meth:`gather`.
        """
        self.moments.complete()
        # A copy of the module alone: it has the same parts, and a preprocessing of its own.
        model = copy.copy(self._model)
        model.preprocess_image = lambda batch: self.preprocess(batch, cores)
        return model.forward(inputs)

    def preprocess(self, inputs: list[dict], cores: Sequence[Core]) -> ImageList:
        """A batch of tiles as the model makes it, which knows the image that they are of."""
        images = self._model.preprocess_image(inputs)
        x = images.tensor
        size = tuple(x.shape[-2:])
        extents = x.extents if isinstance(x, Padded) else Extents([size] * len(x), size)
        # Padding that the model takes for image is none here.
        shares = [
            [own / full for own, full in zip(image, inside, strict=True)] * 2
            for image, inside in zip(images.image_sizes, extents.at(size), strict=True)
        ]
        cores = [
            tuple(end * share for end, share in zip(core, by, strict=True))
            for core, by in zip(cores, shares, strict=True)
        ]
        tiles = Tiles(self.moments, cores, extents)
        images.tensor = padded(plain(x), tiles, clean=True)
        return images

    def _check(self, features: dict) -> None:
        for name, x in features.items():
            if not isinstance(x, Padded):
                raise NormdetError(
                    f"the backbone's map {name} does not tell its image: the backbone has layers "
                    "other than convolutions, norms, activations and pooling; it needs "
                    "INPUT.TILE_STATISTICS own"
                )


def cores_of(tiles: Sequence[Box]) -> list[Core]:
    """For each tile the part of it that stands for the image, as shares of its height and width.

    Cores end in the middle of overlaps. They cover the image once.

    Args:
        tiles: of :func:`normdet.evaluation.tiles.tile_boxes`.
    """
    columns = _ends(sorted({(x0, x1) for x0, _, x1, _ in tiles}))
    rows = _ends(sorted({(y0, y1) for _, y0, _, y1 in tiles}))
    return [
        (
            (rows[y0][0] - y0) / (y1 - y0), (columns[x0][0] - x0) / (x1 - x0),
            (rows[y0][1] - y0) / (y1 - y0), (columns[x0][1] - x0) / (x1 - x0),
        )
        for x0, y0, x1, y1 in tiles
    ]  # fmt: skip


def _ends(spans: list[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """By the start of each span, where its core starts and ends."""
    seams = [(before[1] + after[0]) // 2 for before, after in pairwise(spans)]
    starts, ends = [spans[0][0], *seams], [*seams, spans[-1][1]]
    return {span[0]: (start, end) for span, start, end in zip(spans, starts, ends, strict=True)}
