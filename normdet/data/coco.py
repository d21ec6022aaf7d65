"""COCO annotation files: read, checked, and turned into detectron2's records."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from normdet.data.image_file import read_header
from normdet.data.names import Finder
from normdet.data.records import (
    MAX_BOX_FAULTS,
    BoxCheck,
    Dataset,
    are_finite,
    box_fault,
    check_class_name,
    warn_dropped,
)
from normdet.data.rle import runs
from normdet.errors import NormdetError
from normdet.files.faults import fault
from normdet.files.read import read_bytes
from normdet.files.words import first_of

# The largest file of COCO itself is 0.5 GB; json needs about ten times a file's size in memory.
MAX_BYTES = 2 << 30
# pycocotools counts pixels in 32 bits, and takes memory by a polygon's length: of no use above
# these, and what it does then is to crash.
_MOST_PIXELS = (1 << 31) - 1
_LONGEST_OUTLINE = 1 << 22
# Digits of an id that is taken for a number.
_LONGEST_ID = 19


def load_coco(
    json_file: str | Path,
    image_root: str | Path,
    report: Callable[[str], None] | None = None,
    *,
    roots: Sequence[Path] = (),
    max_box_faults: float = MAX_BOX_FAULTS,
) -> Dataset:
    """Read a COCO instances (or keypoints) file.

    The records are those of detectron2's `load_coco_json`, an object's stated area beside them.
    Boxes without area or outside their image, and masks without a valid polygon, are left out and
    listed as `dropped`. Common deviations from the format are understood: ids as text
    or missing, sizes as whole floats, boxes as objects, flat polygons.

    Args:
        json_file: annotations; polygons, compressed and uncompressed RLE are read.
        image_root: folder that holds every image the file names.
        report: called with a sentence on each image and each annotation that cannot be used, which
            is then left out; by default the first of them raises.
        roots: more folders in which images are searched.
        max_box_faults: the largest share of boxes that may disagree with their masks or leave their
            image.

    Raises:
        NormdetError: where the file is missing, not COCO, names images that are not there or lie
            outside `image_root`, repeats an image's or category's id, refers to an unknown image or
            category, or has too many boxes that disagree.
    """
    json_file, image_root = Path(json_file), Path(image_root)
    content = _read(json_file)
    if not image_root.is_dir():
        raise NormdetError(f"image folder {image_root} does not exist")
    finder = Finder([image_root, *roots])
    return dataset_of(content, json_file, image_root, finder, report, max_box_faults)


def dataset_of(
    content: dict[str, list[dict]],
    source: Path,
    image_root: Path,
    finder: Finder,
    report: Callable[[str], None] | None = None,
    max_box_faults: float = MAX_BOX_FAULTS,
) -> Dataset:
    """What :func:`load_coco` makes of a file's content; other formats are brought to this form.

    Args:
        content: the lists `images`, `annotations` and `categories`.
        source: the file, for messages.
        image_root: folder of the images.
        finder: of the files that images name.
        report: as in :func:`load_coco`, and so is `max_box_faults`.
    """
    images = _by_id(content["images"], "image", source)
    categories = _by_id(content["categories"], "category", source)
    if not categories:
        raise NormdetError(f"{source} has no categories")
    _check_names(categories, "name", "category", source)
    _check_names(images, "file_name", "image", source)
    for category in categories.values():
        check_class_name(category["name"], source)
    notes: list[str] = []
    used = {_key(entry.get("category_id")) for entry in content["annotations"]}
    categories = _without_roots(categories, used, source, notes)
    paths = _image_paths(images, finder, source, report)
    sizes = _sizes(images, paths, source, report)
    notes += finder.said(source)

    in_order = sorted(categories, key=_order)
    contiguous = {key: index for index, key in enumerate(in_order)}
    records = {
        key: {
            "file_name": str(paths[key]),
            "height": sizes[key][0],
            "width": sizes[key][1],
            "image_id": _user_id(images[key]["id"]),
            "annotations": [],
        }
        for key in sorted(images, key=_order)
        if key in sizes
    }
    for key, record in records.items():
        if (ignored := _ignored(images[key], record, source, report)) is not None:
            record["ignore"] = ignored
    dropped: list[str] = []
    left_out = images.keys() - records.keys()
    boxes, counts = BoxCheck(source, max_box_faults), Counter()
    for place, annotation in enumerate(content["annotations"], start=1):
        if _key(annotation.get("image_id")) in left_out:
            continue
        name = annotation.get("id", f"number {place}")
        try:
            record = _owner(annotation, name, records, contiguous, source)
            annotation = _as_meant(annotation, record, f"{source}: annotation {name}", counts)
            reason = _fault(annotation, name, record, source)
        except NormdetError as error:
            fault(str(error), report)
            continue
        phrase = f"annotation {name} of image {record['image_id']}"
        if reason:
            dropped.append(f"{phrase} ({reason})")
            continue
        bounds = _bounds(annotation.get("segmentation"))
        if not annotation["iscrowd"]:
            size = record["height"], record["width"]
            boxes.see(annotation["bbox"], bounds, size, phrase)
        record["annotations"].append(_object(annotation, contiguous))
    if report is None:
        warn_dropped(dropped, len(content["annotations"]), source)
    notes += boxes.settle(report)
    notes += [f"{source}: {count} {what}" for what, count in counts.items()]
    ids = [_user_id(categories[key]["id"]) for key in in_order]
    classes = [categories[key]["name"] for key in in_order]
    return Dataset(list(records.values()), classes, ids, image_root, dropped, notes)


def _read(json_file: Path) -> dict[str, list[dict]]:
    content = read_json(json_file)
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


def read_json(json_file: Path) -> Any:
    """The content of a JSON file of up to 2 GB.

    Raises:
        NormdetError: a file that is missing, larger, or not JSON.
    """
    if not json_file.is_file():
        raise NormdetError(f"annotation file {json_file} does not exist")
    content = read_bytes(json_file, MAX_BYTES)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NormdetError(f"{json_file} is not JSON: {error}") from error


def _key(value: Any) -> str | None:
    """An id as text: the same of 1, 1.0 and "1"; None of what is no id."""
    if type(value) is int:  # nearly all are
        return str(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return str(value).strip() or None


def _user_id(value: Any) -> int | str:
    return int(value) if isinstance(value, float) else value


def _order(key: str) -> tuple[bool, int, str]:
    """Sorts ids: numbers by value, before all else."""
    number = key.isdecimal() and len(key) < _LONGEST_ID
    return not number, int(key) if number else 0, key


def _by_id(entries: list[dict], kind: str, json_file: Path) -> dict[str, dict]:
    ids = [_key(entry.get("id")) for entry in entries]
    if not all(ids):
        raise NormdetError(f"{json_file} is not COCO: an {kind} entry has no id")
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        raise NormdetError(f"{json_file} uses the same {kind} id twice: {first_of(repeated)}")
    return dict(zip(ids, entries, strict=True))


def _check_names(entries: dict[str, dict], key: str, kind: str, source: Path) -> None:
    for entry in entries.values():
        if not isinstance(entry.get(key), str):
            raise NormdetError(f"{source} is not COCO: {kind} {entry['id']} has no {key}")


def _without_roots(
    categories: dict[str, dict], used: set[str | None], source: Path, notes: list[str]
) -> dict[str, dict]:
    """Drop a category that only names the others and has no annotation, as Roboflow writes one."""
    parents = {str(entry.get("supercategory")) for entry in categories.values()}
    roots = [
        key
        for key, entry in categories.items()
        if key not in used
        and entry["name"] in parents
        and (entry.get("supercategory") or "none") == "none"
    ]
    if len(roots) == len(categories):
        return categories
    for key in roots:
        name = categories[key]["name"]
        notes.append(f"{source}: the category {name!r} only holds the others, and is no class")
    return {key: entry for key, entry in categories.items() if key not in roots}


def _image_paths(
    images: dict[str, dict],
    finder: Finder,
    source: Path,
    report: Callable[[str], None] | None,
) -> dict[str, Path]:
    paths, missing = {}, []
    for key, image in images.items():
        try:
            path = finder(image["file_name"], source)
        except NormdetError as error:
            fault(str(error), report)
            continue
        if path is None:
            missing.append(image["file_name"])
        else:
            paths[key] = path
    if missing:
        fault(
            f"{source} names {len(missing)} images (of {len(paths) + len(missing)}) that do not "
            f"exist: {first_of(missing)}",
            report,
        )
    return paths


def _sizes(
    images: dict[str, dict],
    paths: dict[str, Path],
    source: Path,
    report: Callable[[str], None] | None,
) -> dict[str, tuple[int, int]]:
    """Height and width of each image that was found: as stated, or as the file says."""
    sizes = {}
    for key, path in paths.items():
        stated = [images[key].get(name) for name in ("height", "width")]
        try:
            if stated == [None, None]:
                header = read_header(path)
                stated = [header.height, header.width]
            for value, name in zip(stated, ("height", "width"), strict=True):
                whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
                if not whole or isinstance(value, bool):
                    raise NormdetError(f"{source} is not COCO: image {key} has no {name}")
            height, width = map(int, stated)
            if min(height, width) < 1 or height * width > _MOST_PIXELS:
                raise NormdetError(f"{source}: image {key} states a size that no image has")
            sizes[key] = height, width
        except NormdetError as error:
            fault(str(error), report)
    return sizes


def _ignored(
    image: dict, record: dict, source: Path, report: Callable[[str], None] | None
) -> dict | None:
    """The RLE of pixels that are neither object nor background, where an image has them."""
    rle = image.get("ignore")
    if not isinstance(rle, dict):
        return None
    size = [record["height"], record["width"]]
    if rle.get("size") != size or not _covers(rle.get("counts"), *size):
        fault(f"{source}: image {record['image_id']} has an ignore that is not an RLE of {size}",
              report)  # fmt: skip
        return None
    return _compressed(rle)


def _owner(
    annotation: dict, name: Any, records: dict[str, dict], contiguous: dict, source: Path
) -> dict:
    for field, known in (("image_id", records), ("category_id", contiguous)):
        value = annotation.get(field)
        if _key(value) not in known:
            raise NormdetError(f"{source}: annotation {name} has the unknown {field} {value!r}")
    return records[_key(annotation["image_id"])]


def _as_meant(annotation: dict, record: dict, where: str, counts: Counter) -> dict:
    """An annotation in COCO's form, from other forms that are understood."""
    meant = dict(annotation)
    crowd = annotation.get("iscrowd", 0)
    meant["iscrowd"] = {None: 0, False: 0, True: 1}.get(crowd, crowd) if _is_plain(crowd) else crowd
    box, mask = annotation.get("bbox"), annotation.get("segmentation")
    if isinstance(box, dict) and {"x", "y", "width", "height"} <= box.keys():
        meant["bbox"] = box = [box[name] for name in ("x", "y", "width", "height")]
        counts["boxes were written as objects, not lists"] += 1
    if isinstance(mask, list) and mask and all(isinstance(value, int | float) for value in mask):
        meant["segmentation"] = mask = [mask]
        counts["polygons were written without the list around them"] += 1
    if isinstance(mask, list) and box and mask and _is_box(mask, box):
        meant["segmentation"] = mask = None
        counts["masks were two corners of their box: taken as boxes without a mask"] += 1
    if box is None and mask and _mask_fault(mask, record, where) is None and _bounds(mask):
        x0, y0, x1, y1 = _bounds(mask)
        meant["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        counts["boxes were missing: taken from their masks"] += 1
    return meant


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


def _bounds(segmentation: Any) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom of a mask; None of none."""
    if isinstance(segmentation, dict):
        try:
            x, y, width, height = mask_util.toBbox(_compressed(segmentation)).tolist()
        except (TypeError, ValueError, KeyError):  # named when its turn comes
            return None
        return (x, y, x + width, y + height) if width and height else None
    polygons = _polygons(segmentation) if isinstance(segmentation, list) else []
    if not polygons or not all(map(are_finite, polygons)):
        return None
    xs = [value for polygon in polygons for value in polygon[::2]]
    ys = [value for polygon in polygons for value in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _compressed(rle: dict) -> dict:
    if isinstance(rle["counts"], list):
        return mask_util.frPyObjects(rle, *rle["size"])
    return rle


def _fault(annotation: dict, name: Any, record: dict, json_file: Path) -> str | None:
    where = f"{json_file}: annotation {name}"
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
    """Whether pycocotools can draw them in the memory there is; it checks nothing itself."""
    for polygon in polygons:
        if not are_finite(polygon):
            return False
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -side or max(values) > 2 * side:
                return False
    # Most polygons pass by this upper bound.
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


def _object(annotation: dict, contiguous: dict[str, int]) -> dict:
    result = {
        "iscrowd": annotation["iscrowd"],
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": contiguous[_key(annotation["category_id"])],
    }
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        segmentation = _compressed(segmentation)
    elif segmentation:
        segmentation = _polygons(segmentation)
    if segmentation:
        result["segmentation"] = segmentation
    if annotation.get("keypoints"):
        # COCO's keypoints are pixel indices; detectron2 wants pixel centres, as the masks have.
        result["keypoints"] = [
            value if index % 3 == 2 else value + 0.5
            for index, value in enumerate(annotation["keypoints"])
        ]
    area = annotation.get("area")
    if isinstance(area, int | float) and are_finite([area]):
        # What evaluation calls small and large is decided by the area that a file states.
        result["area"] = area
    return result
