"""Lists of images with their boxes, as YOLOv3 for Keras and YOLOv4 for PyTorch take (Roboflow).

A line is `x.jpg 10,12,30,36,0 40,12,50,36,1`: corners and the number of the class.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from normdet.data.image_file import SUFFIXES
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, corners_box, text_of

_NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = rf"{_NUMBER}(?:,{_NUMBER}){{3}},\d+"
_LINE = re.compile(rf"(?P<name>\S.*?)(?P<boxes>(?:\s+{_BOX})*)\s*")
# Files with the names of classes, one per line.
_LISTS = ("_classes.txt", "classes.txt", "coco_classes.txt")
# Lines longer than this are no lists: the pattern's time grows with their square.
_LONGEST = 1 << 16


def find(files: Files) -> list[Path]:
    """Text files whose first lines name images and have boxes."""
    return [path for path in files.ending(".txt") if _is_list(files.beginning(path))]


def _is_list(text: str) -> bool:
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    found = [_parts(line) for line in lines]
    # The probe may cut off the last line.
    return all(found[:-1] or found) and any(part and part[1] for part in found)


def _parts(line: str) -> tuple[str, list[str]] | None:
    match = _LINE.fullmatch(line) if len(line) <= _LONGEST else None
    if not match or not match["name"].lower().endswith(SUFFIXES):
        return None
    return match["name"], match["boxes"].split()


def read(file: Path, out: Builder) -> None:
    """All images of a list."""
    names = _names(file)
    out.declare(names)
    for name, boxes in list(_lines(file)):
        image = out.image(name, file)
        for text in boxes if image else ():
            *corners, number = text.split(",")
            if names and int(number) >= len(names):
                raise NormdetError(f"{file} has the class {number}, and {len(names)} are named")
            label = names[int(number)] if names else f"class {number}"
            out.add(image, label, box=corners_box(*map(float, corners)))


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(text_of(file).splitlines(), start=1):
        if line.strip():
            if not (parts := _parts(line)):
                raise NormdetError(f"{file} has no image and boxes in line {number}")
            yield parts


def _names(file: Path) -> list[str]:
    for path in (file.parent / name for name in _LISTS):
        if path.is_file():
            return [line.strip() for line in text_of(path).splitlines() if line.strip()]
    return []


FORMAT = Format("box-lines", "lists of `image x0,y0,x1,y1,class` (YOLOv3 Keras)", find, read)
