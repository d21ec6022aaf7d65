"""COCO annotation files: read, checked, and turned into detectron2's records."""

import json
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.annotation import (
    as_meant,
    check_ids,
    compressed,
    covers,
    drawn,
    fault_of,
    id_key,
    mask_bounds,
    number_of,
    object_of,
)
from normdet.data.image_file import read_header
from normdet.data.names import Finder
from normdet.data.plain import columns
from normdet.data.records import (
    MAX_BOX_FAULTS,
    OUTSIDE,
    BoxCheck,
    Dataset,
    check_class_name,
    warn_dropped,
)
from normdet.errors import NormdetError
from normdet.files.anonymous import is_hiding, known_name
from normdet.files.faults import fault
from normdet.files.memory import no_collection
from normdet.files.read import read_bytes
from normdet.files.words import first_of

# The largest file of COCO itself is 0.5 GB; json needs about ten times a file's size in memory.
MAX_BYTES = 2 << 30
# pycocotools counts pixels in 32 bits, and crashes above.
_MOST_PIXELS = (1 << 31) - 1
# Digits of an id that is taken for a number.
_LONGEST_ID = 19
# Annotations that are looked at side by side: many, and few enough that an odd one costs little.
AT_ONCE = 512


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
    with no_collection():
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
    _hide_ids(content)
    notes: list[str] = []
    used = {id_key(entry.get("category_id")) for entry in content["annotations"]}
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
    left_out = images.keys() - records.keys()
    reader = _Objects(source, records, contiguous, left_out, report)
    reader.read(content["annotations"], boxes := BoxCheck(source, max_box_faults))
    if report is None:
        warn_dropped(reader.dropped, len(content["annotations"]), source)
    notes += boxes.settle(report)
    notes += [f"{source}: {count} {what}" for what, count in reader.forms.items()]
    ids = [_user_id(categories[key]["id"]) for key in in_order]
    classes = [categories[key]["name"] for key in in_order]
    return Dataset(list(records.values()), classes, ids, image_root, reader.dropped, notes)


class _Objects:
    """Gives each record the objects of a file's annotations.

    Args:
        source: the file, for messages.
        records: by the key of their image; their `annotations` are filled.
        classes: numbers of classes by the key of their category.
        left_out: keys of images whose annotations are passed over.
        report: as in :func:`load_coco`.

    Attributes:
        dropped: a phrase on each annotation that was left out.
        forms: how many annotations had another form than COCO's.
    """

    def __init__(
        self,
        source: Path,
        records: dict[str, dict],
        classes: dict[str, int],
        left_out: Container[str],
        report: Callable[[str], None] | None,
    ):
        self._source, self._left_out, self._report = source, left_out, report
        self._records, self._classes = records, classes
        self.dropped: list[str] = []
        self.forms: Counter[str] = Counter()

    def read(self, annotations: Sequence[dict], boxes: BoxCheck) -> None:
        """Read all of a file's annotations, and show `boxes` those that are no crowd's."""
        owners, classes = _as_written(self._records), _as_written(self._classes)
        for start in range(0, len(annotations), AT_ONCE):
            part = annotations[start : start + AT_ONCE]
            found = columns(part, owners, classes)
            seen = np.zeros(len(part), bool)
            for place, (annotation, plain) in enumerate(
                zip(part, found.plain.tolist(), strict=True)
            ):
                if plain:
                    record = owners[annotation["image_id"]]
                    entry = object_of(annotation, classes[annotation["category_id"]])
                else:
                    name = annotation.get("id", f"number {start + place + 1}")
                    record, entry = self._one(annotation, name, boxes)
                    if entry is None:
                        continue
                    found.boxes[place] = entry["bbox"]
                    found.bounds[place] = mask_bounds(entry.get("segmentation")) or np.nan
                    found.sizes[place] = record["height"], record["width"]
                record["annotations"].append(entry)
                seen[place] = not entry["iscrowd"]
            places = np.flatnonzero(seen)
            boxes.see(
                found.boxes[places], found.bounds[places], found.sizes[places],
                lambda row, part=part, places=places, start=start: _phrase(
                    part[places[row]], start + places[row] + 1
                ),
            )  # fmt: skip

    def _one(
        self, annotation: dict, name: Any, boxes: BoxCheck
    ) -> tuple[dict, dict] | tuple[None, None]:
        """Record and object of an annotation that is odd in some way; None where it is left out."""
        key, where = id_key(annotation.get("image_id")), f"{self._source}: annotation {name}"
        if key in self._left_out:
            return None, None
        try:
            check_ids(annotation, where, self._records, self._classes)
            record = self._records[key]
            annotation = as_meant(annotation, record, where, self.forms)
            reason = fault_of(annotation, record, where)
        except NormdetError as error:
            fault(str(error), self._report)
            return None, None
        if reason == OUTSIDE and not annotation["iscrowd"]:
            boxes.outside(_phrase(annotation, name))
        if reason:
            self.dropped.append(f"{_phrase(annotation, name)} ({reason})")
            return None, None
        annotation["segmentation"] = drawn(annotation.get("segmentation"))
        return record, object_of(annotation, self._classes[id_key(annotation["category_id"])])


def _hide_ids(content: dict[str, list[dict]]) -> None:
    """Ids that are text can be names of patients; with `--anonymize` messages show none."""
    if is_hiding():
        for entry in (*content["images"], *content["annotations"]):
            for value in (entry.get("id"), entry.get("image_id"), entry.get("file_name")):
                if isinstance(value, str):
                    known_name(value)


def _phrase(annotation: dict, name: Any) -> str:
    return f"annotation {name} of image {annotation['image_id']}"


def _as_written(known: Mapping[str, Any]) -> dict[int | str, Any]:
    """By the ids that files write: the text of each key, and the number that it is the text of."""
    numbers = {int(key): value for key, value in known.items() if _is_number(key)}
    return {**known, **numbers}


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < _LONGEST_ID and str(int(key)) == key


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


def _user_id(value: Any) -> int | str:
    return int(value) if isinstance(value, float) else value


def _order(key: str) -> tuple[bool, int, str]:
    """Sorts ids: numbers by value, before all else."""
    number = key.isdecimal() and len(key) < _LONGEST_ID
    return not number, int(key) if number else 0, key


def _by_id(entries: list[dict], kind: str, json_file: Path) -> dict[str, dict]:
    ids = [id_key(entry.get("id")) for entry in entries]
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
        stated = [number_of(images[key].get(name)) for name in ("height", "width")]
        try:
            if None in stated:
                header = read_header(path)
                own = header.height, header.width
                stated = [mine if said is None else said
                          for said, mine in zip(stated, own, strict=True)]  # fmt: skip
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
    if rle.get("size") != size or not covers(rle.get("counts"), *size):
        fault(f"{source}: image {record['image_id']} has an ignore that is not an RLE of {size}",
              report)  # fmt: skip
        return None
    return compressed(rle)
