"""The shared part of the readers: the form they return, and checks on boxes and paths."""

import logging
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from normdet.errors import NormdetError
from normdet.files.words import first_of

logger = logging.getLogger(__name__)

# The largest share of boxes that disagree with their masks or leave their image.
MAX_BOX_FAULTS = 0.1
# Why a box is left out that lies outside its image.
OUTSIDE = "outside the image"
# A box may be off by this many pixels, plus this share of its mask's longer side.
_ROUNDING, _SLACK = 2, 0.1
# Unicode categories: control characters, surrogates, separators of lines and paragraphs.
_UNWRITTEN = ("Cc", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class Dataset:
    """A dataset as detectron2 takes it.

    Attributes:
        records: one dict per image, in detectron2's standard format.
        classes: names in the order of the contiguous `category_id`.
        category_ids: the annotation file's id of each class, in the same order.
        image_root: folder of the images.
        dropped: a phrase on each box that was left out.
        notes: sentences on unusual readings that the user should know of.
    """

    records: list[dict]
    classes: list[str]
    category_ids: list[int]
    image_root: Path
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def are_finite(values: Iterable[Any]) -> bool:
    """Whether all are finite numbers. The sum shows it, except for extreme values."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):  # no number, or a whole one of hundreds of digits
        return False


def check_class_name(name: str, source: Any) -> None:
    """Refuse a name that cannot be written or drawn on one line.

    Raises:
        NormdetError: naming it and `source`.
    """
    if not name.strip() or any(unicodedata.category(letter) in _UNWRITTEN for letter in name):
        raise NormdetError(f"{source} has the class name {name!r}, which is no line of text")


def box_fault(x0: float, y0: float, x1: float, y1: float, width: int, height: int) -> str | None:
    """Why a box cannot be trained on or matched, or None."""
    if not are_finite((x0, y0, x1, y1)):
        return "not finite"
    if x1 <= x0 or y1 <= y0:
        return "no area"
    if min(x1, width) <= max(x0, 0) or min(y1, height) <= max(y0, 0):
        return OUTSIDE
    return None


def warn_dropped(dropped: Sequence[str], total: int, source: Path) -> None:
    """One line saying how many of `total` boxes were left out of `source`, naming the first."""
    if dropped:
        logger.warning(
            "%s: left out %d of %d boxes: %s", source, len(dropped), total, first_of(dropped)
        )


class BoxCheck:
    """Counts boxes that disagree with their masks or leave their image by more than rounding.

    Args:
        source: of the boxes, for messages.
        most: the largest share of such boxes that is accepted.
    """

    def __init__(self, source: Path, most: float = MAX_BOX_FAULTS):
        self._source, self._most = source, most
        self._phrases: list[str] = []
        self._total = self._corners = self._shares = 0

    def outside(self, phrase: str) -> None:
        """Count a box that was left out because all of it lies outside its image."""
        self._total += 1
        self._phrases.append(f"{phrase} ({OUTSIDE})")

    def see(
        self, boxes: ArrayLike, bounds: ArrayLike, sizes: ArrayLike, name: Callable[[int], str]
    ) -> None:
        """Check N boxes.

        Args:
            boxes: `(N, 4)`: x, y, width, height.
            bounds: `(N, 4)`, of their masks: left, top, right, bottom; NaN without one.
            sizes: `(N, 2)`: height and width of the image.
            name: of the annotation in a row.
        """
        boxes, bounds = np.reshape(boxes, (-1, 4)), np.reshape(bounds, (-1, 4))
        sides = np.reshape(sizes, (-1, 2))[:, ::-1]
        self._total += len(boxes)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        shares = _in_first_pixel(corners, sides)
        self._shares += int(shares.sum())
        odd = shares | _leave(corners, sides) | _disagree(corners, bounds, sides)
        # Many files have corners instead of COCO's width and height.
        as_corners = ~(_leave(boxes, sides) | _disagree(boxes, bounds, sides))
        as_corners &= (boxes[:, 2:] > boxes[:, :2]).all(1)
        self._corners += int((odd & as_corners).sum())
        for row in np.flatnonzero(odd).tolist():
            why = _why(corners[row], bounds[row], sides[row])
            self._phrases.append(f"{name(row)} ({why})")

    def settle(self, report: Callable[[str], None] | None) -> list[str]:
        """Sentences on the boxes so far.

        Raises:
            NormdetError: their share is larger than allowed; `report` is called before.
        """
        count = len(self._phrases)
        if not count:
            return []
        guess = ""
        if self._corners > count / 2:
            guess = "; as corners (x0, y0, x1, y1) most would fit: COCO has x, y, width, height"
        if self._shares > count / 2:
            guess = "; they seem to be shares of the image, from 0 to 1: pixels are wanted"
        sentence = (
            f"{self._source}: {count} of {self._total} boxes disagree with their masks or leave "
            f"their image: {first_of(self._phrases)}{guess}"
        )
        if count <= self._most * self._total:
            return [sentence]
        if report:
            report(sentence)
        raise NormdetError(
            f"{sentence}. At most a share of {self._most:g} may (training: "
            "DATASETS.MAX_BOX_FAULTS; normdet prepare: --max-box-faults)"
        )


def _leave(corners: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Whether each of N boxes left, top, right, bottom leaves its image of `sides`, x and y."""
    low, high = corners[:, :2], corners[:, 2:]
    return ((low < -_ROUNDING) | (high > sides + _ROUNDING)).any(1)


def _in_first_pixel(corners: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Whether each of N boxes lies where shares of the image, from 0 to 1, put all boxes.

    VOC counts from 1, so that its readers take 1 from the upper left corner.
    """
    return ((corners >= -1) & (corners <= 1 + 1e-6)).all(1) & (sides > _ROUNDING).all(1)


def _disagree(corners: np.ndarray, bounds: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Whether each of N boxes disagrees with its mask, if it has one."""
    inside = np.clip(corners, 0, np.tile(sides, 2))
    mask = np.clip(bounds, 0, np.tile(sides, 2))
    slack = np.maximum(_ROUNDING, _SLACK * (mask[:, 2:] - mask[:, :2]).max(1))
    return (np.abs(inside - mask) > slack[:, None]).any(1)  # of NaN nothing is greater


def _why(corners: np.ndarray, bounds: np.ndarray, sides: np.ndarray) -> str:
    """A phrase on a box that leaves its image or disagrees with its mask."""
    if _in_first_pixel(corners[None], sides[None]).any():
        return f"box to {corners[2]:.3g}, {corners[3]:.3g}, in the first pixel"
    if _leave(corners[None], sides[None]).any():
        return f"box to {corners[2]:g}, {corners[3]:g} in an image of {sides[0]}x{sides[1]}"
    both = (np.clip(one, 0, np.tile(sides, 2)) for one in (bounds, corners))
    mask, box = (",".join(f"{value:g}" for value in one) for one in both)
    return f"box {box}, mask {mask}"


def confined(folder: Path, name: str, source: Path) -> Path:
    """`folder / name`, which must lie inside `folder` once links are followed.

    A link that is `folder` itself is followed first, so a dataset folder may be a link.

    Raises:
        NormdetError: the name is absolute, climbs out, is a link to a place outside, or is not
            possible for a file.
    """
    root = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(root, name))
    except ValueError as error:  # a null character, or half a letter
        raise NormdetError(f"{source} names {name!r}, which is no file name") from error
    if os.path.isabs(name) or os.path.commonpath([root, path]) != root:
        raise NormdetError(f"{source} names {name!r}, which lies outside the image folder {folder}")
    return Path(folder, name)
