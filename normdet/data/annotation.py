"""Read one annotation of a COCO file as it is meant, check it, and make detectron2's object."""

import contextlib
import sys
from collections import Counter
from collections.abc import Container
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from normdet.data.records import are_finite, box_fault
from normdet.data.rle import runs
from normdet.errors import NormdetError

# The longest polygon in pixels. pycocotools' memory grows with the length, and it crashes beyond
# this.
LONGEST_OUTLINE = 1 << 22
# The longest text that is read as a number.
_LONGEST_NUMBER = 40


def id_key(value: Any) -> str | None:
    """An id as text, the same for 1, 1.0 and "1"; None for anything else."""
    if type(value) is int:  # nearly all are
        return str(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value).strip() or None


def check_ids(
    annotation: dict, where: str, images: Container[str], classes: Container[str]
) -> None:
    """Refuse an annotation of an unknown image or category.

    Raises:
        NormdetError: naming it.
    """
    for field, known in (("image_id", images), ("category_id", classes)):
        value = annotation.get(field)
        if id_key(value) not in known:
            raise NormdetError(f"{where} has the unknown {field} {value!r}")


def as_meant(annotation: dict, record: dict, where: str, counts: Counter) -> dict:
    """An annotation in COCO's form, converted from known other forms.

    Args:
        annotation: as a file has it.
        record: of its image.
        where: file and annotation, for messages.
        counts: of the forms that were met, counted up.
    """
    meant = dict(annotation)
    crowd = annotation.get("iscrowd", 0)
    if _is_plain(crowd):
        crowd = {None: 0, False: 0, True: 1}[crowd]
    meant["iscrowd"] = number_of(crowd)
    if isinstance(box := annotation.get("bbox"), list) and any(type(one) is str for one in box):
        meant["bbox"] = [number_of(one) for one in box]
        counts["boxes were written as text"] += 1
    if annotation.get("ignore") in (1, "1"):
        meant["iscrowd"] = 1
        counts["annotations were marked `ignore`: taken as crowd regions"] += 1
    box, mask = meant.get("bbox"), annotation.get("segmentation")
    if mask == {}:
        meant["segmentation"] = mask = None
    if isinstance(mask, list) and (outlines := _from_points(mask)):
        meant["segmentation"] = mask = outlines
        counts["polygons were written as lists of points"] += 1
    if isinstance(box, dict) and {"x", "y", "width", "height"} <= box.keys():
        meant["bbox"] = box = [box[name] for name in ("x", "y", "width", "height")]
        counts["boxes were written as objects, not lists"] += 1
    if isinstance(mask, list) and mask and all(isinstance(value, int | float) for value in mask):
        meant["segmentation"] = mask = [mask]
        counts["polygons were written without the list around them"] += 1
    if isinstance(mask, list) and box and mask and _is_box(mask, box):
        meant["segmentation"] = mask = None
        counts["masks were two corners of their box: taken as boxes without a mask"] += 1
    if box is None and mask and mask_fault(mask, record, where) is None and mask_bounds(mask):
        x0, y0, x1, y1 = mask_bounds(mask)
        meant["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        counts["boxes were missing: taken from their masks"] += 1
    return meant


def number_of(value: Any) -> Any:
    """The number in a text; anything else unchanged."""
    if not isinstance(value, str) or len(value) > _LONGEST_NUMBER:
        return value
    with contextlib.suppress(ValueError):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


def _from_points(mask: list) -> list | None:
    """Outlines `x0, y0, x1, ...` from one list of points, or several; None for anything else."""
    if all(isinstance(part, list) and part and isinstance(part[0], list) for part in mask):
        outlines = mask
    elif len(mask) > 2 and all(isinstance(part, list) and len(part) == 2 for part in mask):
        outlines = [mask]
    else:
        return None
    points = [point for outline in outlines for point in outline]
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        return None
    return [[value for point in outline for value in point] for outline in outlines]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_box(polygons: list, box: Any) -> bool:
    """Whether polygons are the two corners of a box."""
    if len(polygons) != 1 or not isinstance(polygons[0], list) or len(polygons[0]) != 4:
        return False
    if not isinstance(box, list) or len(box) != 4 or not are_finite([*polygons[0], *box]):
        return False
    corners = box[0], box[1], box[0] + box[2], box[1] + box[3]
    return all(abs(a - b) <= 1 for a, b in zip(polygons[0], corners, strict=True))


def mask_bounds(segmentation: Any) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of a mask; None without a mask."""
    if isinstance(segmentation, dict):
        try:
            x, y, width, height = mask_util.toBbox(compressed(segmentation)).tolist()
        except (TypeError, ValueError, KeyError):  # reported when the mask is checked
            return None
        return (x, y, x + width, y + height) if width and height else None
    polygons = _polygons(segmentation) if isinstance(segmentation, list) else []
    if not polygons or not all(map(are_finite, polygons)):
        return None
    xs = [value for polygon in polygons for value in polygon[::2]]
    ys = [value for polygon in polygons for value in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def compressed(rle: dict) -> dict:
    """An RLE in COCO's compressed form."""
    if isinstance(rle["counts"], list):
        return mask_util.frPyObjects(rle, *rle["size"])
    return rle


def fault_of(annotation: dict, record: dict, where: str) -> str | None:
    """Why an annotation in COCO's form is left out; None if nothing is wrong.

    Raises:
        NormdetError: the annotation is not COCO.
    """
    box = annotation.get("bbox")
    if not isinstance(box, list) or not all(isinstance(value, int | float) for value in box):
        raise NormdetError(f"{where} has no bbox of four numbers")
    if not box:
        return "empty bbox"
    if len(box) != 4:
        raise NormdetError(f"{where} has no bbox of four numbers")
    if not are_finite(box):
        return "bbox not finite"
    if annotation["iscrowd"] not in (0, 1):
        raise NormdetError(f"{where} has an iscrowd that is neither 0 nor 1")
    keypoints = annotation.get("keypoints") or []
    if not isinstance(keypoints, list) or not are_finite(keypoints) or len(keypoints) % 3:
        raise NormdetError(f"{where} has keypoints that are not numbers by threes")
    x, y, width, height = box
    if fault := box_fault(x, y, x + width, y + height, record["width"], record["height"]):
        return fault
    return mask_fault(annotation.get("segmentation"), record, where)


def mask_fault(segmentation: Any, record: dict, where: str) -> str | None:
    """Why a mask is left out; None if nothing is wrong."""
    if isinstance(segmentation, dict):
        size = [record["height"], record["width"]]
        if segmentation.get("size") != size or not covers(segmentation.get("counts"), *size):
            raise NormdetError(f"{where} has a mask that is not an RLE of {size}")
    elif isinstance(segmentation, list):
        if segmentation and not (polygons := _polygons(segmentation)):
            return "no polygon of three points"
        if segmentation and not _can_be_drawn(polygons, record["height"], record["width"]):
            return "polygon not finite, far outside the image, or endless"
    elif segmentation is not None:
        raise NormdetError(f"{where} has a segmentation that is neither polygons nor an RLE")
    return None


def _can_be_drawn(polygons: list[list[float]], height: int, width: int) -> bool:
    """Whether pycocotools has the memory to draw them; it does not check this itself."""
    for polygon in polygons:
        if not are_finite(polygon):
            return False
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -side or max(values) > 2 * side:
                return False
    # Most polygons pass by this upper bound.
    most = sum(map(len, polygons)) * 2 * max(height, width)
    return most <= LONGEST_OUTLINE or sum(map(_length, polygons)) <= LONGEST_OUTLINE


def _length(polygon: list[float]) -> float:
    """The length in steps between pixels, also diagonal ones."""
    points = np.array(polygon, float).reshape(-1, 2)
    return np.abs(points - np.roll(points, 1, axis=0)).max(1).sum()


def covers(counts: Any, height: int, width: int) -> bool:
    """Whether the runs of an RLE fill the image; pycocotools leaves missing pixels undefined."""
    if isinstance(counts, str):
        lengths = runs(counts)
    elif isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        lengths = counts
    else:
        return False
    return bool(lengths) and min(lengths) >= 0 and sum(lengths) == height * width


def drawn(segmentation: Any) -> dict | list | None:
    """A valid mask in detectron2's form: a compressed RLE, or its valid polygons."""
    if isinstance(segmentation, dict):
        return compressed(segmentation)
    return _polygons(segmentation) if segmentation else None


def _polygons(segmentation: list) -> list[list[float]]:
    return [
        polygon
        for polygon in segmentation
        if isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6
    ]


def object_of(annotation: dict, category: int) -> dict:
    """detectron2's object for a valid annotation.

    Args:
        annotation: in COCO's form, or plain as :mod:`normdet.data.plain` means it.
        category: number of its class.
    """
    result = {
        "iscrowd": int(annotation.get("iscrowd") or 0),
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": category,
    }
    if segmentation := annotation.get("segmentation"):
        result["segmentation"] = segmentation
    if keypoints := annotation.get("keypoints"):
        # COCO's keypoints are pixel indices; detectron2 needs pixel centres, like those of masks.
        result["keypoints"] = [
            value if index % 3 == 2 else value + 0.5 for index, value in enumerate(keypoints)
        ]
    area = annotation.get("area")
    if type(area) in (int, float) and abs(area) <= sys.float_info.max:
        # The file's area decides which objects evaluation counts as small and large.
        result["area"] = area
    return result
