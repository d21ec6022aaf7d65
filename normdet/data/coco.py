"""COCO annotation files: read, checked, and turned into detectron2's records."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from normdet.data.records import (
    Dataset,
    are_finite,
    box_fault,
    check_class_name,
    confined,
    warn_dropped,
)
from normdet.data.rle import runs
from normdet.errors import NormdetError
from normdet.files.faults import fault, unreadable
from normdet.files.words import first_of

# The largest file of COCO itself is 0.5 GB; json needs about ten times a file's size in memory.
MAX_BYTES = 2 << 30
# pycocotools counts pixels in 32 bits, and takes memory by a polygon's length: of no use above
# these, and what it does then is to crash.
_MOST_PIXELS = (1 << 31) - 1
_LONGEST_OUTLINE = 1 << 22


def load_coco(
    json_file: str | Path,
    image_root: str | Path,
    report: Callable[[str], None] | None = None,
) -> Dataset:
    """Read a COCO instances (or keypoints) file.

    The records are those of detectron2's `load_coco_json`. Boxes without area or outside their
    image, and masks without a valid polygon, are left out with one warning that counts them.

    Args:
        json_file: annotations; polygons, compressed and uncompressed RLE are read.
        image_root: folder that holds every image the file names.
        report: called with a sentence on each image and each annotation that cannot be used, which
            is then left out; by default the first of them raises and boxes left out are counted.

    Raises:
        NormdetError: where the file is missing, not COCO, names images that are not there or lie
            outside `image_root`, repeats an id, or refers to an unknown image or category.
    """
    json_file, image_root = Path(json_file), Path(image_root)
    content = _read(json_file)
    images = _by_id(content["images"], "image", json_file)
    categories = _by_id(content["categories"], "category", json_file)
    annotations = _by_id(content["annotations"], "annotation", json_file)
    if not categories:
        raise NormdetError(f"{json_file} has no categories")
    _check_names(images.values(), ("file_name", "height", "width"), "image", json_file)
    _check_names(categories.values(), ("name",), "category", json_file)
    for category in categories.values():
        check_class_name(category["name"], json_file)
    paths = _image_paths(images, image_root, json_file, report)

    category_ids = sorted(categories)
    contiguous = {category: index for index, category in enumerate(category_ids)}
    records = {
        key: {
            "file_name": str(paths[key]),
            "height": image["height"],
            "width": image["width"],
            "image_id": key,
            "annotations": [],
        }
        for key, image in sorted(images.items())
        if key in paths
    }
    dropped = []
    left_out = images.keys() - paths.keys()
    for key, annotation in annotations.items():
        image_id = annotation.get("image_id")
        if isinstance(image_id, int) and image_id in left_out:
            continue
        try:
            record = _owner(annotation, key, records, contiguous, json_file)
            reason = _fault(annotation, key, record, json_file)
        except NormdetError as error:
            fault(str(error), report)
            continue
        if reason:
            dropped.append(f"annotation {key} of image {record['image_id']} ({reason})")
        else:
            record["annotations"].append(_object(annotation, contiguous))
    warn_dropped(dropped, len(annotations), json_file, report)
    # What pycocotools reads of the truth beyond what the format demands for training.
    complete = all(
        are_finite([entry.get("area")]) and "iscrowd" in entry for entry in annotations.values()
    )
    return Dataset(
        list(records.values()),
        [categories[key]["name"] for key in category_ids],
        category_ids,
        json_file if complete and not dropped else None,
        image_root,
        dropped,
    )


def _read(json_file: Path) -> dict[str, list[dict]]:
    if not json_file.is_file():
        raise NormdetError(f"annotation file {json_file} does not exist")
    if json_file.stat().st_size > MAX_BYTES:
        raise NormdetError(f"{json_file} is larger than {MAX_BYTES >> 30} GB: not read")
    try:
        content = json.loads(json_file.read_bytes())
    except OSError as error:
        raise unreadable(json_file, error) from error
    except (ValueError, RecursionError) as error:
        raise NormdetError(f"{json_file} is not JSON: {error}") from error
    sections = ("images", "annotations", "categories")
    missing = [
        name
        for name in sections
        if not isinstance(content, dict) or not isinstance(content.get(name), list)
    ]
    if missing:
        raise NormdetError(
            f"{json_file} is not COCO: it has no list {' and no list '.join(missing)}"
        )
    for name in sections:
        if not all(isinstance(entry, dict) for entry in content[name]):
            raise NormdetError(f"{json_file} is not COCO: {name} holds something not an object")
    return content


def _by_id(entries: list[dict], kind: str, json_file: Path) -> dict[Any, dict]:
    ids = [entry.get("id") for entry in entries]
    if not all(isinstance(key, int) for key in ids):
        raise NormdetError(f"{json_file} is not COCO: an {kind} entry has no whole number as id")
    repeated = [str(key) for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise NormdetError(f"{json_file} uses the same {kind} id twice: {first_of(repeated)}")
    return dict(zip(ids, entries, strict=True))


def _check_names(entries: Iterable[dict], keys: tuple[str, ...], kind: str, source: Path) -> None:
    for entry in entries:
        for key in keys:
            kind_of_value = int if key in ("height", "width") else str
            if not isinstance(entry.get(key), kind_of_value):
                raise NormdetError(f"{source} is not COCO: {kind} {entry['id']} has no {key}")


def _image_paths(
    images: dict[int, dict],
    image_root: Path,
    json_file: Path,
    report: Callable[[str], None] | None,
) -> dict[int, Path]:
    if not image_root.is_dir():
        raise NormdetError(f"image folder {image_root} does not exist")
    paths = {}
    for key, image in images.items():
        height, width = image["height"], image["width"]
        try:
            if min(height, width) < 1 or height * width > _MOST_PIXELS:
                raise NormdetError(f"{json_file}: image {key} states a size that no image has")
            paths[key] = confined(image_root, image["file_name"], json_file)
        except NormdetError as error:
            fault(str(error), report)
    # Not the path's own method: that raises on a name that is too long.
    missing = {key: str(path) for key, path in paths.items() if not os.path.isfile(path)}
    if missing:
        fault(
            f"{json_file} names {len(missing)} images (of {len(paths)}) that do not exist: "
            f"{first_of(missing.values())}",
            report,
        )
    return {key: path for key, path in paths.items() if key not in missing}


def _owner(
    annotation: dict, key: int, records: dict[int, dict], contiguous: dict, json_file: Path
) -> dict:
    for field, known in (("image_id", records), ("category_id", contiguous)):
        value = annotation.get(field)
        if not isinstance(value, int) or value not in known:
            raise NormdetError(f"{json_file}: annotation {key} has the unknown {field} {value!r}")
    return records[annotation["image_id"]]


def _fault(annotation: dict, key: int, record: dict, json_file: Path) -> str | None:
    where = f"{json_file}: annotation {key}"
    box = annotation.get("bbox")
    if not isinstance(box, list) or not all(isinstance(value, int | float) for value in box):
        raise NormdetError(f"{where} has no bbox of four numbers")
    if not box:
        return "empty bbox"
    if len(box) != 4:
        raise NormdetError(f"{where} has no bbox of four numbers")
    if not are_finite(box):
        return "bbox not finite"
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise NormdetError(f"{where} has an iscrowd that is neither 0 nor 1")
    keypoints = annotation.get("keypoints") or []
    if not isinstance(keypoints, list) or not are_finite(keypoints) or len(keypoints) % 3:
        raise NormdetError(f"{where} has keypoints that are not numbers by threes")
    x, y, width, height = box
    if fault := box_fault(x, y, x + width, y + height, record["width"], record["height"]):
        return fault
    return _mask_fault(annotation.get("segmentation"), record, where)


def _mask_fault(segmentation: Any, record: dict, where: str) -> str | None:
    if isinstance(segmentation, dict):
        size = [record["height"], record["width"]]
        if segmentation.get("size") != size or not _covers(segmentation.get("counts"), *size):
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
    """Whether pycocotools draws them in the memory that there is; it looks at nothing itself."""
    for polygon in polygons:
        if not are_finite(polygon):
            return False
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -side or max(values) > 2 * side:
                return False
    # Nearly all are short by what they can be at most.
    most = sum(map(len, polygons)) * 2 * max(height, width)
    return most <= _LONGEST_OUTLINE or sum(map(_length, polygons)) <= _LONGEST_OUTLINE


def _length(polygon: list[float]) -> float:
    """In steps from pixel to pixel, diagonal ones included."""
    points = np.array(polygon, float).reshape(-1, 2)
    return np.abs(points - np.roll(points, 1, axis=0)).max(1).sum()


def _covers(counts: Any, height: int, width: int) -> bool:
    """Whether the runs of an RLE fill the image: pycocotools leaves what they lack to chance."""
    if isinstance(counts, str):
        lengths = runs(counts)
    elif isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        lengths = counts
    else:
        return False
    return bool(lengths) and min(lengths) >= 0 and sum(lengths) == height * width


def _polygons(segmentation: list) -> list[list[float]]:
    return [
        polygon
        for polygon in segmentation
        if isinstance(polygon, list) and len(polygon) % 2 == 0 and len(polygon) >= 6
    ]


def _object(annotation: dict, contiguous: dict[int, int]) -> dict:
    result = {
        "iscrowd": annotation.get("iscrowd", 0),
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": contiguous[annotation["category_id"]],
    }
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        result["segmentation"] = segmentation
    elif segmentation:
        result["segmentation"] = _polygons(segmentation)
    if annotation.get("keypoints"):
        # COCO's keypoints are pixel indices; detectron2 wants pixel centres, as the masks have.
        result["keypoints"] = [
            value if index % 3 == 2 else value + 0.5
            for index, value in enumerate(annotation["keypoints"])
        ]
    return result
