"""A run's predictions, and the images to draw them on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util

from normdet.data.channels import to_format
from normdet.data.image_file import read_image
from normdet.lab.report.figures import Scene

# Predictions with a lower score are not drawn.
DRAWN_SCORE = 0.5


def predictions(folder: Path) -> dict[int, list[dict]]:
    """A run's predictions on its test set by image id, most certain first."""
    entries = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    by_image: dict[int, list[dict]] = {}
    for entry in sorted(entries, key=lambda entry: -entry["score"]):
        by_image.setdefault(entry["image_id"], []).append(entry)
    return by_image


def scene(record: Mapping, predicted: Mapping[str, Mapping[int, Sequence[dict]]]) -> Scene:
    """One image of a test set with its truth and each run's predictions above `DRAWN_SCORE`.

    Args:
        record: of the dataset, in detectron2's format.
        predicted: by run, the result of :func:`predictions`.
    """
    shape = record["height"], record["width"]
    certain = {
        name: [e for e in by_image.get(record["image_id"], ()) if e["score"] >= DRAWN_SCORE]
        for name, by_image in predicted.items()
    }
    pixels = read_image(Path(record["file_name"]))
    pixels = to_format(pixels, "L")[..., 0] if pixels.ndim == 3 else pixels
    truth = (obj for obj in record["annotations"] if not obj.get("iscrowd", 0))
    return Scene(
        pixels,
        masks(truth, shape, BOX_XYXY if _corners(record) else BOX_XYWH),
        {name: masks(entries, shape, BOX_XYWH) for name, entries in certain.items()},
    )


BOX_XYXY, BOX_XYWH = "xyxy", "xywh"


def _corners(record: Mapping) -> bool:
    """Whether a record's boxes are corners: detectron2's BoxMode.XYXY_ABS is 0."""
    return any(int(obj.get("bbox_mode", 1)) == 0 for obj in record["annotations"])


def masks(objects: Iterable[Mapping], shape: tuple[int, int], box_form: str) -> np.ndarray:
    """The objects' masks, or filled boxes if they have none: `(N, H, W)` bool."""
    drawn = [_mask(obj, shape, box_form) for obj in objects]
    return np.stack(drawn) if drawn else np.zeros((0, *shape), bool)


def _mask(obj: Mapping, shape: tuple[int, int], box_form: str) -> np.ndarray:
    segmentation = obj.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, *shape))
    if segmentation:
        return mask_util.decode(segmentation).astype(bool)
    x, y, x1, y1 = obj["bbox"]
    if box_form == BOX_XYWH:
        x1, y1 = x + x1, y + y1
    filled = np.zeros(shape, bool)
    top, left = max(round(y), 0), max(round(x), 0)
    filled[top : max(round(y1), top + 1), left : max(round(x1), left + 1)] = True
    return filled
