"""Moments of an image of which only tiles are in memory.

The tiles of a batch are one map, a :class:`normdet.ops.padded.Padded` whose extents are
:class:`Tiles`. A norm that asks for its moments gets those of the whole image's map at this place
of the network. Only the tensors know of the image, so threads and two models need no care.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from normdet.errors import NormdetError
from normdet.ops.padded import Extents, Padded, Size, plain
from normdet.ops.reference import var_mean, wide

# Top, left, bottom and right end of the part of a tile that stands for the image, in shares of the
# tile's height and width.
Core = tuple[float, float, float, float]


class ImageMoments:
    """Moments of an image's maps, gathered over its tiles in one pass and used in a second.

    While they are gathered, each norm takes what is known so far: the moments of all tiles up to
    this batch. So tiles that pass together, or after many others, are normalized nearly as in the
    second pass. Takes `2 * C` doubles per map.

    Attributes:
        maps: their moments, in the order of the network.
    """

    def __init__(self):
        self.maps: list[Gathered] = []
        self._complete = False

    def complete(self) -> None:
        """End the first pass."""
        self._complete = True

    def __len__(self) -> int:
        """How many maps' moments are known."""
        return len(self.maps)

    def has(self, index: int) -> bool:
        """Whether it has a map's moments, or is to gather them."""
        return not self._complete or index < len(self.maps)

    def of(self, index: int, channels: int, size: Size, parts: list[Tensor]) -> list[Tensor]:
        """Mean and biased variance `(C,)` of a map.

        Args:
            index: which map in the network's order.
            channels: of the map.
            size: height and width of the map in a tile.
            parts: what the tiles of this batch add to it, each `(C, h, w)`.

        Raises:
            NormdetError: another tile had another map here.
        """
        if index == len(self.maps):
            self.maps.append(Gathered(channels, size))
        known = self.maps[index]
        if (known.channels, known.size) != (channels, size):
            raise NormdetError(
                "the tiles of an image take different ways through this network, so they have no "
                "statistics in common: it needs INPUT.TILE_STATISTICS own"
            )
        if not self._complete:
            known.add(parts)
        return [known.mean, known.square / known.count]


class Gathered:
    """The moments of one map so far: its pixels, their mean, and their summed squared deviations.

    Parts are added by the update of Chan, Golub and LeVeque (1979), in which nothing cancels.
    """

    def __init__(self, channels: int, size: Size):
        self.channels, self.size = channels, size
        self.count = 0
        self.mean = self.square = torch.zeros((), dtype=torch.float64)

    def add(self, parts: list[Tensor]) -> None:
        for part in parts:
            count = part[0].numel()
            var, mean = (m.double() for m in var_mean(wide(part), [1, 2]))
            away = mean - self.mean.to(mean.device)
            total = self.count + count
            between = away.square() * (self.count * count / total)
            self.square = self.square.to(mean.device) + var * count + between
            self.mean = self.mean.to(mean.device) + away * (count / total)
            self.count = total


class Tiles(Extents):
    """The extents of a batch of tiles in its maps, and the image that they are of.

    It counts the maps whose moments are asked for, so it serves one pass through a network.

    Args:
        image: its moments.
        cores: of each tile. The cores of all tiles cover the image once.
        extents: of the tiles in the batch.
    """

    def __init__(self, image: ImageMoments, cores: Sequence[Core], extents: Extents):
        self._image, self._cores, self._extents = image, cores, extents
        self.whole = extents.whole
        self._next = 0

    @property
    def share(self) -> bool:
        """Whether the next map has moments of the image: the first pass may end sooner."""
        return self._image.has(self._next)

    def at(self, size: Size) -> tuple[Size, ...]:
        return self._extents.at(size)

    def moments(self, x: Padded) -> tuple[Tensor, Tensor]:
        """The image's mean and biased variance at this map, both `(N, C)`, the same in each row.

        There is no gradient.
        """
        index, self._next = self._next, self._next + 1
        size = tuple(x.shape[2:])
        with torch.no_grad():
            found = self._image.of(index, x.shape[1], size, self._parts(plain(x), size))
            dtype = wide(x.new_empty(0)).dtype
            return tuple(m.to(x.device, dtype).expand(len(x), -1) for m in found)

    def _parts(self, x: Tensor, size: Size) -> list[Tensor]:
        """What each tile adds to the image's map: its core, of one pixel at least."""
        parts = []
        for tile, core, inside in zip(x, self._cores, self.at(size), strict=True):
            rows, columns = map(_within, core[:2], core[2:], inside)
            parts.append(tile[:, rows, columns])
        return parts


def _within(start: float, end: float, length: int) -> slice:
    first = min(int(start * length + 0.5), length - 1)
    return slice(first, max(int(end * length + 0.5), first + 1))


def is_tiled(x: Tensor) -> bool:
    """Whether `x` is a map of tiles that take their image's moments."""
    return isinstance(x, Padded) and isinstance(x.extents, Tiles) and x.extents.share
