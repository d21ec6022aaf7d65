"""DOTA's text files, as YOLOv5-OBB takes: four corners, a class and a difficulty a line."""

import re
from pathlib import Path

from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, same_stem, text_of

_LINE = re.compile(r"\s*(?:-?\d+(?:\.\d+)?\s+){8}(?P<label>\S.*?)\s+(?P<difficult>[0-2])\s*")
# Lines of the head: where an image is from, and its metres a pixel.
_HEAD = ("imagesource:", "gsd:")


def find(files: Files) -> list[Path]:
    """Text files in which every line is such; empty ones only beside others."""
    texts = [path for path in files.ending(".txt") if _is_labels(files.beginning(path))]
    folders = {path.parent for path in texts if files.beginning(path)}
    return [path for path in texts if path.parent in folders]


def _is_labels(text: str) -> bool:
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    lines = [line for line in lines if not line.lower().startswith(_HEAD)]
    # The probe may cut off the last line. Numbers that are shares of the image are YOLO's.
    return all(map(_LINE.fullmatch, lines[:19])) and (
        not lines or any(float(text) > 2 for line in lines[:19] for text in line.split()[:8])
    )


def read(file: Path, out: Builder) -> None:
    """One image's objects."""
    image = out.image(same_stem(file), file)
    for number, line in enumerate(text_of(file).splitlines() if image else (), start=1):
        if not line.strip() or line.lower().startswith(_HEAD):
            continue
        if not (match := _LINE.fullmatch(line)):
            raise NormdetError(f"{file} has no box of four corners in line {number}")
        out.add(image, match["label"], polygons=[[float(text) for text in line.split()[:8]]])


FORMAT = Format("dota", "DOTA's text files: turned boxes (YOLOv5-OBB)", find, read)
