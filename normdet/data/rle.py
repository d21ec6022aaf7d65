"""COCO's run lengths, and masks stored as pieces of the image, which stay small in any image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

# A run has 32 bits. Without this limit, a number of millions of characters would take hours.
_MOST_BITS = 60


def runs(counts: str | bytes) -> list[int] | None:
    """The run lengths of a compressed RLE, or None if it is not one.

    In COCO's form a character has five bits, low ones first, and a sixth that says whether the
    number goes on. From the fourth run on, a number is the difference to the run before the last.
    """
    counts = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    lengths: list[int] = []
    value = shift = 0
    for byte in counts:
        bits = byte - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if shift > _MOST_BITS:
            return None
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    # If the last number does not end, pycocotools reads beyond the text.
    return None if shift else lengths


def fills(counts: Sequence[str], pixels: np.ndarray) -> np.ndarray:
    """Whether the runs of each compressed RLE make up an image, `(N,)` bool.

    The same as `min(runs(text)) >= 0 and sum(runs(text)) == pixels`, of many at once.

    Args:
        counts: N texts.
        pixels: `(N,)`, of each image, below 2**31.
    """
    full = np.zeros(len(counts), bool)
    sizes = np.fromiter(map(len, counts), int, len(counts))
    text = "".join(counts)
    if not text.isascii() or not sizes.all():
        return np.array([_fills(*one) for one in zip(counts, pixels.tolist(), strict=True)], bool)
    data = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(counts)), sizes)
    sound = np.ones(len(counts), bool)
    sound[owner[(data < 0) | (data >= 64)]] = False
    is_last = data & 32 == 0
    ends = np.cumsum(sizes) - 1
    sound &= is_last[ends]
    is_last[ends] = True
    lasts = np.flatnonzero(is_last)
    firsts = np.append(0, lasts[:-1] + 1)
    digits = lasts - firsts + 1
    sound[owner[lasts[digits > _MOST_BITS // 5]]] = False
    place = np.arange(len(data)) - np.repeat(firsts, digits)
    values = np.add.reduceat((data & 31) << np.minimum(5 * place, _MOST_BITS), firsts)
    values -= (data[lasts] >> 4 & 1) << np.minimum(5 * digits, _MOST_BITS)
    of = owner[lasts]
    # No sum of runs up to this limit overflows 64 bits, and no run of a valid RLE is longer.
    sound[of[np.abs(values) >= 1 << 31]] = False
    values[~sound[of]] = 0
    # Each run from the fourth on adds to the one before the last, so sum odd and even places.
    begins = np.flatnonzero(np.diff(of, prepend=-1))
    index = np.arange(len(of)) - np.repeat(begins, np.diff(np.append(begins, len(of))))
    chain = 3 * of + np.where(index == 0, 0, 1 + index % 2)
    order = np.argsort(chain, kind="stable")
    sums = np.cumsum(values[order])
    heads = np.flatnonzero(np.diff(chain[order], prepend=-1))
    before = np.append(0, sums)[heads]
    lengths = sums - np.repeat(before, np.diff(np.append(heads, len(of))))
    sound[of[order][(lengths < 0) | (lengths >= 1 << 31)]] = False
    lengths[~sound[of[order]]] = 0
    # The two chains of a mask stay together, so each mask's runs begin where they did.
    full[sound] = (np.add.reduceat(lengths, begins) == pixels)[sound]
    return full


def _fills(counts: str, pixels: int) -> bool:
    lengths = runs(counts)
    return bool(lengths) and min(lengths) >= 0 and sum(lengths) == pixels


@dataclass(frozen=True)
class Piece:
    """A mask as its tight rectangle in an image.

    Attributes:
        x: column of the rectangle's left edge.
        y: row of its upper edge.
        mask: `(h, w)` bool.
    """

    x: int
    y: int
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, x: int = 0, y: int = 0) -> "Piece":
        """The piece of a mask `(H, W)` whose upper left pixel is at `(x, y)`; it may be empty."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return cls(x, y, np.zeros((0, 0), bool))
        top, left = int(rows[0]), int(columns[0])
        tight = mask[top : rows[-1] + 1, left : columns[-1] + 1]
        return cls(x + left, y + top, tight.astype(bool))

    @classmethod
    def from_rle(cls, rle: dict) -> "Piece":
        """The piece of a compressed RLE. Time and memory depend on the object, not on the image."""
        height = rle["size"][0]
        ends = np.cumsum(runs(rle["counts"]) or [0])
        starts, ends = ends[:-1:2], ends[1::2]
        flat = np.concatenate(
            [np.arange(a, b) for a, b in zip(starts, ends, strict=True)] or [np.zeros(0, int)]
        )
        if not len(flat):
            return cls(0, 0, np.zeros((0, 0), bool))
        columns, rows = np.divmod(flat, height)
        x, y = int(columns.min()), int(rows.min())
        mask = np.zeros((rows.max() - y + 1, columns.max() - x + 1), bool)
        mask[rows - y, columns - x] = True
        return cls(x, y, mask)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom; the last two are the first column and row outside."""
        height, width = self.mask.shape
        return self.x, self.y, self.x + width, self.y + height

    @property
    def area(self) -> int:
        """The number of its pixels."""
        return int(np.count_nonzero(self.mask))

    def within(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """The mask on the common rectangle of the piece and `box`."""
        x0, y0, x1, y1 = box
        left, top = max(x0 - self.x, 0), max(y0 - self.y, 0)
        return self.mask[top : max(y1 - self.y, top), left : max(x1 - self.x, left)]

    def filled(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """The mask on all of `box`: `(H, W)` bool."""
        x0, y0, x1, y1 = box
        out = np.zeros((y1 - y0, x1 - x0), bool)
        part = self.within(box)
        top, left = max(self.y - y0, 0), max(self.x - x0, 0)
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out

    def shared(self, other: "Piece") -> int:
        """The number of pixels that both have."""
        mine, others = self.within(other.box), other.within(self.box)
        return int(np.count_nonzero(mine & others)) if mine.size and others.size else 0

    def joined(self, other: "Piece") -> "Piece":
        """All pixels of both."""
        corners = np.array([self.box, other.box])
        box = (*corners[:, :2].min(0).tolist(), *corners[:, 2:].max(0).tolist())
        return Piece(box[0], box[1], self.filled(box) | other.filled(box))

    def rle(self, height: int, width: int) -> dict:
        """The compressed RLE in an image `(height, width)`, its counts as text."""
        columns, rows = np.nonzero(self.mask.T)
        flat = (columns + self.x) * height + rows + self.y
        firsts = np.flatnonzero(np.diff(flat, prepend=-2) != 1)
        starts = flat[firsts]
        ends = flat[np.append(firsts[1:], len(flat)) - 1] + 1 if len(flat) else starts
        edges = np.stack([starts, ends], 1).reshape(-1)
        counts = np.diff(edges, prepend=0, append=height * width).tolist()
        counts = counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts
        rle = mask_util.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
        return {"size": [height, width], "counts": rle["counts"].decode()}
