"""Pascal VOC folders with any class names."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Container
from pathlib import Path

from detectron2.structures import BoxMode
from PIL import Image

from normdet.data.records import Dataset, box_fault, confined, warn_dropped
from normdet.errors import NormdetError
from normdet.files.faults import fault, unreadable
from normdet.files.words import first_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def load_voc(
    folder: str | Path,
    image_set: str,
    report: Callable[[str], None] | None = None,
    without: Container[str] = (),
) -> Dataset:
    """Read `folder/ImageSets/Main/<image_set>.txt` and what it names.

    The records are those of detectron2's `load_voc_instances` (1-based corners, `difficult`
    objects included). The classes are all names that occur in `folder/Annotations`, sorted, so
    every image set of a folder has the same ones. Boxes without area or outside their image are
    left out with one warning that counts them.

    Args:
        report: called with a sentence on each image and each box that cannot be used, which is then
            left out; by default the first broken image raises and boxes left out are counted.
        without: images of the set that are not read.

    Raises:
        NormdetError: where a file is missing, is not VOC, or lies outside `folder`.
    """
    folder = Path(folder)
    stems = [stem for stem in read_set(folder, image_set) if stem not in without]
    listing = _listing(folder, image_set)
    classes = _classes(folder / "Annotations", report)
    records: list[dict] = []
    dropped: list[str] = []
    total = 0
    for number, stem in enumerate(stems, start=1):
        try:
            record, faulty = _record(folder, stem, classes, listing)
        except NormdetError as error:
            fault(str(error), report)
            continue
        records.append({**record, "image_id": number})
        dropped += faulty
        total += len(record["annotations"]) + len(faulty)
    warn_dropped(dropped, total, listing, report)
    ids = list(range(len(classes)))
    return Dataset(records, classes, ids, None, folder / "JPEGImages", dropped)


def read_set(folder: Path, image_set: str) -> list[str]:
    """The images that `folder/ImageSets/Main/<image_set>.txt` names, each once.

    Raises:
        NormdetError: the file is missing or no text in UTF-8.
    """
    listing = _listing(folder, image_set)
    if not listing.is_file():
        raise NormdetError(
            f"{folder} is not a Pascal VOC folder with a set {image_set!r}: no {listing}"
        )
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise NormdetError(f"{listing} is not text in UTF-8: save it so") from error
    except OSError as error:
        raise unreadable(listing, error) from error
    # A line may carry a second column: VOC's per-class sets do.
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _listing(folder: Path, image_set: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{image_set}.txt"


def _record(folder: Path, stem: str, classes: list[str], listing: Path) -> tuple[dict, list[str]]:
    """An image's record, and a phrase on each of its boxes that is left out."""
    tree = _parse(confined(folder / "Annotations", f"{stem}.xml", listing))
    image = _image(folder / "JPEGImages", stem, listing)
    try:
        with Image.open(image) as header:
            width, height = header.size
    except Exception as error:  # a damaged file raises nearly anything
        raise NormdetError(f"{image} is not an image that can be read") from error
    objects, dropped = [], []
    for item in tree.iter("object"):
        x0, y0, x1, y1 = _corners(item, stem)
        # Read as VOC means them, equal corners are one pixel; in practice they are a slip.
        if reason := box_fault(x0, y0, x1, y1, width, height):
            dropped.append(f"{_name(item)} in {stem}.xml ({reason})")
            continue
        objects.append(
            {
                "bbox": [x0 - 1, y0 - 1, x1, y1],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": classes.index(_name(item)),
            }
        )
    record = {"file_name": str(image), "height": height, "width": width, "annotations": objects}
    return record, dropped


def _classes(annotations: Path, report: Callable[[str], None] | None) -> list[str]:
    names = set()
    for path in sorted(annotations.glob("*.xml")):
        try:
            names |= {_name(item) for item in _parse(path).iter("object")}
        except NormdetError:
            # It is reported when its own turn comes.
            if report is None:
                raise
    if not names or "" in names:
        raise NormdetError(f"{annotations} holds no Pascal VOC objects with names")
    return sorted(names)


def _name(item: ET.Element) -> str:
    """The class name on one line: line breaks in the file are not part of it."""
    return " ".join((item.findtext("name") or "").split())


def _parse(path: Path) -> ET.Element:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise NormdetError(f"annotation file {path} cannot be read: {error.strerror}") from error
    # An entity can expand without bound; no VOC file declares one.
    if b"<!ENTITY" in text.replace(b"\0", b""):  # in UTF-16 too
        raise NormdetError(f"{path} declares an XML entity: not read")
    try:
        return ET.fromstring(text)
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: its encoding
        raise NormdetError(f"{path} is not XML: {error}") from error


def _image(folder: Path, stem: str, listing: Path) -> Path:
    candidates = [confined(folder, stem + suffix, listing) for suffix in SUFFIXES]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise NormdetError(
            f"{listing} names {stem}, but there is no image {first_of(map(str, candidates))}"
        )
    return found[0]


def _corners(item: ET.Element, stem: str) -> list[float]:
    try:
        x0, y0, x1, y1 = (
            float(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
        )
    except (TypeError, ValueError) as error:
        raise NormdetError(f"{stem}.xml has an object without a bndbox of four numbers") from error
    return [x0, y0, x1, y1]
