"""Pascal VOC folders with any class names."""

import os
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path, PurePath

import numpy as np
from detectron2.structures import BoxMode

from normdet.data.image_file import SUFFIXES, read_header
from normdet.data.names import Finder
from normdet.data.records import (
    MAX_BOX_FAULTS,
    OUTSIDE,
    BoxCheck,
    Dataset,
    box_fault,
    confined,
    warn_dropped,
)
from normdet.errors import NormdetError
from normdet.files.faults import fault
from normdet.files.read import parse_xml, read_text

# Lists of images may have this behind a name: whether an object of some class is there.
_MARKS = ("-1", "0", "1")
# The largest list of images.
_LARGEST_LIST = 64 << 20


def load_voc(
    folder: str | Path,
    image_set: str,
    report: Callable[[str], None] | None = None,
    without: Container[str] = (),
    max_box_faults: float = MAX_BOX_FAULTS,
) -> Dataset:
    """Read `folder/ImageSets/Main/<image_set>.txt` and the images that it names.

    The records are those of detectron2's `load_voc_instances` (1-based corners, `difficult`
    objects included). Sizes are those of the loaded images, turned by EXIF; an XML file with
    another size is a fault. Lists may name files with their endings and with spaces. The classes
    are all names in `folder/Annotations`, sorted, so every image set of a folder has the same ones.
    Boxes without area or outside their image are left out and listed as `dropped`.

    Args:
        report: called with a sentence on each image that cannot be used, which is then left out;
            by default the first raises.
        without: images of the set that are not read.
        max_box_faults: the largest share of boxes that may leave their image.

    Raises:
        NormdetError: a file is missing, is not VOC, or is outside `folder`.
    """
    folder = Path(folder)
    stems = [stem for stem in read_set(folder, image_set) if stem not in without]
    listing = _listing(folder, image_set)
    classes = _classes(folder / "Annotations", report)
    finder = Finder([folder / "JPEGImages"])
    boxes = BoxCheck(listing, max_box_faults)
    records: list[dict] = []
    dropped: list[str] = []
    for number, stem in enumerate(stems, start=1):
        try:
            record, faulty = _record(folder, stem, classes, listing, finder, boxes)
        except NormdetError as error:
            fault(str(error), report)
            continue
        records.append({**record, "image_id": number})
        dropped += faulty
    if report is None:
        total = len(dropped) + sum(len(record["annotations"]) for record in records)
        warn_dropped(dropped, total, listing)
    notes = boxes.settle(report)
    ids = list(range(len(classes)))
    return Dataset(records, classes, ids, folder / "JPEGImages", dropped, notes)


def read_set(folder: Path, image_set: str) -> list[str]:
    """The images that `folder/ImageSets/Main/<image_set>.txt` names, each once, without endings.

    Raises:
        NormdetError: the file is missing, or not text in UTF-8.
    """
    listing = _listing(folder, image_set)
    if not listing.is_file():
        raise NormdetError(
            f"{folder} is not a Pascal VOC folder with a set {image_set!r}: no {listing}"
        )
    lines = read_text(listing, _LARGEST_LIST).splitlines()
    known = {
        unicodedata.normalize("NFC", path.stem): path.stem
        for path in (folder / "Annotations").glob("*.xml")
    }
    return list(dict.fromkeys(_stem(line.strip(), known) for line in lines if line.strip()))


def _stem(line: str, known: Mapping[str, str]) -> str:
    """The stem of the XML file that a line means, among the known ones."""
    name, _, mark = line.rpartition(" ")
    name = name.strip() if mark in _MARKS and name.strip() else line
    possible = [name, PurePath(name).name, line, line.split()[0]]
    possible += [
        os.path.splitext(one)[0]
        for one in possible
        if os.path.splitext(one)[1].lower() in (*SUFFIXES, ".xml")
    ]
    found = (known.get(unicodedata.normalize("NFC", one)) for one in possible)
    return next(filter(None, found), possible[-1] if len(possible) > 4 else name)


def _listing(folder: Path, image_set: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{image_set}.txt"


def _record(
    folder: Path, stem: str, classes: list[str], listing: Path, finder: Finder, boxes: BoxCheck
) -> tuple[dict, list[str]]:
    """An image's record, and a phrase on each of its boxes that is left out."""
    file = confined(folder / "Annotations", f"{stem}.xml", listing)
    tree = parse_xml(file)
    image = finder(stem, listing)
    if image is None:
        raise NormdetError(
            f"{listing} names {stem}, but there is no image {folder / 'JPEGImages' / stem}.jpg, "
            f"nor one ending in {', '.join(SUFFIXES)}"
        )
    header = read_header(image)
    height, width = header.height, header.width
    if (stated := stated_size(tree)) not in (None, (height, width)):
        raise NormdetError(
            f"{file} is for {stated[1]}x{stated[0]} pixels, and {image} has {width}x{height} as it "
            "is loaded (turned as its EXIF says)"
        )
    objects, dropped = [], []
    for name, (x0, y0, x1, y1) in read_objects(tree, f"{stem}.xml"):
        # By VOC's rules equal corners are one pixel; in practice they are a mistake.
        if reason := box_fault(x0, y0, x1, y1, width, height):
            if reason == OUTSIDE:
                boxes.outside(f"{name} in {stem}.xml")
            dropped.append(f"{name} in {stem}.xml ({reason})")
            continue
        objects.append(
            {
                "bbox": [x0 - 1, y0 - 1, x1, y1],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": classes.index(name),
            }
        )
    corners = np.reshape([entry["bbox"] for entry in objects], (-1, 4))
    corners[:, 2:] -= corners[:, :2]
    boxes.see(
        corners, np.full_like(corners, np.nan), [(height, width)] * len(objects),
        lambda row: f"{stem}.xml",
    )  # fmt: skip
    record = {"file_name": str(image), "height": height, "width": width, "annotations": objects}
    return record, dropped


def _classes(annotations: Path, report: Callable[[str], None] | None) -> list[str]:
    names = set()
    for path in sorted(annotations.glob("*.xml")):
        try:
            names |= {_name(item) for item in parse_xml(path).iter("object")}
        except NormdetError:
            # It is reported when it is read itself.
            if report is None:
                raise
    if not names or "" in names:
        raise NormdetError(f"{annotations} holds no Pascal VOC objects with names")
    return sorted(names)


def _name(item: ET.Element) -> str:
    """The class name on one line: line breaks in the file are not part of it."""
    return " ".join((item.findtext("name") or "").split())


def stated_size(tree: ET.Element) -> tuple[int, int] | None:
    """Height and width that an annotation states; None if it does not, or states 0."""
    try:
        height, width = (int(float(tree.findtext(f"size/{k}") or 0)) for k in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def read_objects(
    tree: ET.Element, name: str
) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
    """The class and the corners, counted from 1, of each object of an annotation.

    Raises:
        NormdetError: an object without a box.
    """
    for item in tree.iter("object"):
        try:
            x0, y0, x1, y1 = (
                float(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
            )
        except (TypeError, ValueError) as error:
            raise NormdetError(f"{name} has an object without a bndbox of four numbers") from error
        yield _name(item), (x0, y0, x1, y1)
