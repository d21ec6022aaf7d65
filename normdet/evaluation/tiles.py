"""Large images in overlapping tiles, and the merging of the objects found in them.

Detections of two tiles are one object if their masks agree inside the overlap. The parts of an
object that a seam cuts are joined. An object that is found twice counts once. If one tile sees an
object whole and another sees a part of it, the part is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from normdet.data.rle import Piece
from normdet.errors import NormdetError

Box = tuple[int, int, int, int]

# Two masks are one object from this IoU on, inside the region that both tiles see.
SAME_IOU = 0.5
# A mask mostly inside another tile's mask of the same class is not an object of its own.
INSIDE = 0.5
# A mask this close to its tile's edge, in pixels, counts as cut by it.
TOUCH = 3
# The overlap must show enough of an object to recognize it.
MIN_OVERLAP = 4 * TOUCH


@dataclass(frozen=True)
class Detection:
    """One object found.

    Attributes:
        box: left, top, right, bottom in pixels of the image.
        score: in [0, 1].
        category: contiguous class index.
        piece: its mask, or the filled box where the model predicts none.
        has_mask: whether `piece` is a mask.
    """

    box: tuple[float, float, float, float]
    score: float
    category: int
    piece: Piece
    has_mask: bool

    def as_coco(self, height: int, width: int) -> dict:
        """`bbox`, `score` and, if there is a mask, `segmentation` of COCO's result format."""
        x0, y0, x1, y1 = self.box
        entry = {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": self.score}
        return entry | ({"segmentation": self.piece.rle(height, width)} if self.has_mask else {})


def check_tiling(size: int, overlap: int) -> None:
    """Refuse a tile or an overlap too small to recognize objects in.

    Raises:
        NormdetError: naming the numbers.
    """
    if size < 0 or (size and not MIN_OVERLAP <= overlap <= size // 2):
        raise NormdetError(
            f"tiles of {size} pixels overlapping by {overlap}: the overlap must be at least "
            f"{MIN_OVERLAP} pixels and at most half a tile (a tile of 0 is the whole image)"
        )


def tile_boxes(height: int, width: int, size: int, overlap: int) -> list[Box]:
    """Tiles of `size` pixels that cover an image evenly; one tile if the image is no larger.

    Neighbours overlap by `overlap` pixels or more. A `size` of 0 means the whole image.
    """
    if not size:
        return [(0, 0, width, height)]
    return [
        (x, y, min(x + size, width), min(y + size, height))
        for y in _starts(height, size, overlap)
        for x in _starts(width, size, overlap)
    ]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return np.linspace(0, length - size, count).round().astype(int).tolist()


def merge(tiles: Sequence[Box], found: Sequence[Sequence[Detection]]) -> list[Detection]:
    """Merge the objects of tiles into those of the image, best score first.

    Args:
        tiles: of :func:`tile_boxes`.
        found: for each tile its detections, in coordinates of the image.
    """
    if len(tiles) == 1:
        return sorted(found[0], key=lambda detection: -detection.score)
    corners = np.array(tiles)
    image = (*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist())
    everything, owner = [], []
    for index, detections in enumerate(found):
        near = [tile for tile in tiles if tile != tiles[index] and _common(tile, tiles[index])]
        for one in detections:
            cut = not _clear(one.piece.box, tiles[index], image)
            if not (cut and any(_clear(one.piece.box, tile, image) for tile in near)):
                everything.append(one)
                owner.append(index)
    same, inside = _compare(tiles, everything, owner)
    group = _groups(len(everything), same)
    gone = _duplicates(everything, {(i, j) for i, j in inside if group[i] != group[j]})
    parts: dict[int, list[Detection]] = {}
    survivors = {pair for pair in same if gone.isdisjoint(pair)}
    for index, number in enumerate(_groups(len(everything), survivors)):
        if index not in gone:
            parts.setdefault(number, []).append(everything[index])
    joined = [_join(group) for group in parts.values()]
    return sorted(joined, key=lambda detection: -detection.score)


def _common(a: Box, b: Box) -> Box | None:
    box = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return box if box[0] < box[2] and box[1] < box[3] else None


def _clear(box: Box, tile: Box, image: Box) -> bool:
    """Whether a tile shows a box with a margin around it. The image's edge needs no margin."""
    margins = box[0] - tile[0], box[1] - tile[1], tile[2] - box[2], tile[3] - box[3]
    return all(
        margin >= (0 if edge == end else TOUCH)
        for margin, edge, end in zip(margins, tile, image, strict=True)
    )


def _compare(
    tiles: Sequence[Box], everything: Sequence[Detection], owner: Sequence[int]
) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Pairs of detections of two tiles that are one object, and pairs with one inside the other."""
    by_tile: dict[int, list[int]] = {}
    for index, tile in enumerate(owner):
        by_tile.setdefault(tile, []).append(index)
    same, inside = set(), set()
    for a in sorted(by_tile):
        for b in sorted(by_tile):
            region = _common(tiles[a], tiles[b]) if a < b else None
            if not region:
                continue
            matches = []
            for i, j in _meeting(everything, by_tile[a], by_tile[b], region):
                first, second = everything[i].piece, everything[j].piece
                shared = first.shared(second)
                if not shared:
                    continue
                seen = [np.count_nonzero(piece.within(region)) for piece in (first, second)]
                matches.append((shared / (sum(seen) - shared), i, j))
                if shared >= INSIDE * min(first.area, second.area):
                    inside.add((i, j))
            taken: set[int] = set()
            for iou, i, j in sorted(matches, reverse=True):
                if iou >= SAME_IOU and not taken.intersection((i, j)):
                    taken.update((i, j))
                    same.add((i, j))
            # If both tiles show two objects, they are two.
            inside -= {(i, j) for _, i, j in matches if {i, j} <= taken}
    return same, inside


def _meeting(
    everything: Sequence[Detection], firsts: Sequence[int], seconds: Sequence[int], region: Box
) -> list[tuple[int, int]]:
    """Pairs of one class whose rectangles meet inside `region`."""
    firsts = [i for i in firsts if _common(everything[i].piece.box, region)]
    seconds = [j for j in seconds if _common(everything[j].piece.box, region)]
    return [
        (i, j)
        for i in firsts
        for j in seconds
        if everything[i].category == everything[j].category
        and _common(everything[i].piece.box, everything[j].piece.box)
    ]


def _duplicates(everything: Sequence[Detection], pairs: set[tuple[int, int]]) -> set[int]:
    """The less certain detection of each pair; dropped detections suppress nothing."""
    gone: set[int] = set()
    order = sorted(
        (sorted(pair, key=lambda index: (-everything[index].score, index)) for pair in pairs),
        key=lambda pair: (-everything[pair[0]].score, pair),
    )
    for better, worse in order:
        if better not in gone:
            gone.add(worse)
    return gone


def _groups(count: int, pairs: set[tuple[int, int]]) -> list[int]:
    """A number for each of `count` things, equal for those that `pairs` connect."""
    root = list(range(count))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = index = root[root[index]]
        return index

    for a, b in sorted(pairs):
        root[find(b)] = find(a)
    return [find(index) for index in range(count)]


def _join(parts: Sequence[Detection]) -> Detection:
    """One object from its parts: all their pixels, the box around them, the best score."""
    best = max(parts, key=lambda part: part.score)
    piece = parts[0].piece
    for part in parts[1:]:
        piece = piece.joined(part.piece)
    boxes = np.array([part.box for part in parts])
    box = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    if not best.has_mask and len(parts) > 1:
        piece = replace(piece, mask=np.ones_like(piece.mask))
    return replace(best, box=box, piece=piece)
