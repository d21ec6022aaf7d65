"""Find those annotations that are in COCO's own form and valid, many at a time.

Nearly all are. To check each in turn costs more than to parse the file; to check them in columns
costs a fifth of that. :mod:`normdet.data.annotation` reads those that are odd in any way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from normdet.data.annotation import LONGEST_OUTLINE
from normdet.data.rle import fills

# The values of `iscrowd` and what they mean.
_CROWDS = (0, 1, None)


@dataclass
class Columns:
    """N annotations in columns. Rows of annotations that are not plain hold nothing.

    Attributes:
        plain: `(N,)` bool: in COCO's own form, and nothing is wrong with it but, perhaps, that its
            box disagrees with its mask.
        boxes: `(N, 4)`: x, y, width, height.
        bounds: `(N, 4)`: left, top, right and bottom of the mask; NaN without one.
        sizes: `(N, 2)`: height and width of the image.
    """

    plain: np.ndarray
    boxes: np.ndarray
    bounds: np.ndarray
    sizes: np.ndarray


def columns(
    annotations: Sequence[dict], owners: Mapping[Any, dict], classes: Mapping[Any, int]
) -> Columns:
    """Check annotations in columns.

    Args:
        annotations: as a file has them.
        owners: records by the ids that annotations name them by.
        classes: by the ids of categories.
    """
    count = len(annotations)
    found = Columns(
        np.zeros(count, bool), np.zeros((count, 4)), np.full((count, 4), np.nan),
        np.ones((count, 2), int),
    )  # fmt: skip
    known = _known(annotations, "image_id", owners) & _known(annotations, "category_id", classes)
    known &= [entry.get("iscrowd") in _CROWDS and not entry.get("ignore") for entry in annotations]
    places = np.flatnonzero(known)
    if not len(places):
        return found
    chosen = [annotations[place] for place in places]
    records = [owners[entry["image_id"]] for entry in chosen]
    sizes = np.array([(record["height"], record["width"]) for record in records])
    boxes, bounds = _boxes(chosen), np.full((len(chosen), 4), np.nan)
    sound = _polygons(chosen, sizes, bounds) | _runs(chosen, sizes, bounds) | _maskless(chosen)
    sound &= _keypoints(chosen) & _inside(boxes, sizes)
    found.plain[places] = sound
    for column, values in ((found.boxes, boxes), (found.bounds, bounds), (found.sizes, sizes)):
        column[places] = values
    return found


def _known(annotations: Sequence[dict], name: str, known: Mapping[Any, Any]) -> np.ndarray:
    values = [entry.get(name) for entry in annotations]
    # True and False are not ids, though Python finds them among numbers.
    return np.array([type(value) in (int, str) and value in known for value in values], bool)


def _numbers(lists: Iterable[list]) -> np.ndarray | None:
    """The numbers of all lists, one after another; None if they contain anything else."""
    flat = list(chain.from_iterable(lists))
    if not set(map(type, flat)) <= {int, float}:
        return None
    try:
        return np.array(flat, float)
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _boxes(annotations: Sequence[dict]) -> np.ndarray:
    """Boxes `(N, 4)`; NaN if a box is not a list of four numbers."""
    boxes = np.full((len(annotations), 4), np.nan)
    lists = [entry.get("bbox") for entry in annotations]
    four = np.array([type(box) is list and len(box) == 4 for box in lists], bool)
    numbers = _numbers(box for box, good in zip(lists, four, strict=True) if good)
    if numbers is not None:
        boxes[four] = numbers.reshape(-1, 4)
    return boxes


def _inside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes have an area and share some of it with their image."""
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        finite = np.isfinite(boxes.sum(1)) & np.isfinite(corners.sum(1))
        low, high = corners[:, :2], corners[:, 2:]
        shared = np.minimum(high, sizes[:, ::-1]) > np.maximum(low, 0)
        return finite & ((high > low) & shared).all(1)


def _maskless(annotations: Sequence[dict]) -> np.ndarray:
    masks = [entry.get("segmentation") for entry in annotations]
    return np.array([mask is None or mask == [] for mask in masks], bool)


def _polygons(annotations: Sequence[dict], sizes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Whether masks are polygons that can be drawn; fills in the bounds of those that are."""
    sound = np.zeros(len(annotations), bool)
    masks = [entry.get("segmentation") for entry in annotations]
    places = np.array([i for i, mask in enumerate(masks) if type(mask) is list and mask], int)
    lines = list(chain.from_iterable(masks[place] for place in places))
    if not lines or set(map(type, lines)) != {list}:
        return sound
    lengths = np.fromiter(map(len, lines), int, len(lines))
    if (lengths < 6).any() or (lengths % 2).any() or (numbers := _numbers(lines)) is None:
        return sound
    # Combine the numbers of each outline into those of each mask.
    counts = np.fromiter((len(masks[place]) for place in places), int, len(places))
    totals = np.add.reduceat(lengths, np.cumsum(counts) - counts)
    starts = (np.cumsum(totals) - totals) // 2
    points = numbers.reshape(-1, 2)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    sides = sizes[places, ::-1]
    short = totals * 2 * sides.max(1) <= LONGEST_OUTLINE
    sound[places] = short & ((low >= -sides) & (high <= 2 * sides)).all(1)
    bounds[places] = np.concatenate([low, high], axis=1)
    return sound


def _runs(annotations: Sequence[dict], sizes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Whether masks are compressed RLEs of their image; fills in the bounds of those that are."""
    sound = np.zeros(len(annotations), bool)
    masks = [entry.get("segmentation") for entry in annotations]
    places = [
        place
        for place, mask in enumerate(masks)
        if type(mask) is dict
        and type(mask.get("counts")) is str
        and mask.get("size") == sizes[place].tolist()
    ]
    if not places:
        return sound
    full = fills([masks[place]["counts"] for place in places], sizes[places].prod(1))
    places = np.array(places)[full]
    if len(places):
        boxes = mask_util.toBbox([masks[place] for place in places])
        boxes[:, 2:] += boxes[:, :2]
        boxes[(boxes[:, :2] >= boxes[:, 2:]).any(1)] = np.nan  # a mask without a pixel
        bounds[places] = boxes
        sound[places] = True
    return sound


def _keypoints(annotations: Sequence[dict]) -> np.ndarray:
    lists = [entry.get("keypoints") for entry in annotations]
    sound = np.array([lst is None or (type(lst) is list and len(lst) % 3 == 0) for lst in lists])
    numbers = _numbers(lst for lst, good in zip(lists, sound, strict=True) if good and lst)
    if numbers is None or not np.isfinite(numbers).all():
        sound &= [not lst for lst in lists]
    return sound
