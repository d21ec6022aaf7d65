"""The truth that predictions are compared with: a dataset's records, numbered by us.

pycocotools treats an annotation of id 0 as missing, needs an area and a crowd mark for each, and
compares ids as they are. So we give it our own ids, areas and marks, not those of the user's file.
"""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode
from pycocotools.coco import COCO


def truth_of(records: Sequence[dict], classes: Sequence[str]) -> COCO:
    """The objects of records in detectron2's format, for pycocotools.

    Images and annotations are numbered from 1 in their order; a category keeps its contiguous
    number.
    """
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        size = {"height": record["height"], "width": record["width"]}
        images.append({"id": number, "file_name": record["file_name"], **size})
        for entry in record["annotations"]:
            annotation = _annotation(entry, record["height"], record["width"])
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": index, "name": name} for index, name in enumerate(classes)]
    return indexed({"images": images, "annotations": annotations, "categories": categories})


def indexed(dataset: dict) -> COCO:
    """The content of a COCO file as pycocotools' object, without a file."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _annotation(entry: dict, height: int, width: int) -> dict:
    box = BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYWH_ABS)
    box = [float(value) for value in box]
    result = {
        "category_id": entry["category_id"],
        "bbox": box,
        "iscrowd": int(entry.get("iscrowd", 0)),
    }
    mask = entry.get("segmentation")
    if mask:
        result["segmentation"] = mask
    result["area"] = entry.get("area", _area(mask, box, height, width))
    if keypoints := entry.get("keypoints"):
        # Back from the centres of pixels to their indices.
        points = np.asarray(keypoints, float).reshape(-1, 3) - (0.5, 0.5, 0)
        result["keypoints"] = points.ravel().tolist()
        result["num_keypoints"] = int((points[:, 2] > 0).sum())
    return result


def _area(mask: list | dict | None, box: Sequence[float], height: int, width: int) -> float:
    if not mask:
        return box[2] * box[3]
    if isinstance(mask, dict):
        return float(mask_util.area(mask))
    return float(mask_util.area(mask_util.merge(mask_util.frPyObjects(mask, height, width))))
