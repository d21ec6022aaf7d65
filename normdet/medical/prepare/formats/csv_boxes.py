"""A table of boxes, as Roboflow and TensorFlow's tools write it."""

import csv
import io
import re
from pathlib import Path

from normdet.data.image_file import SUFFIXES
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, corners_box, text_of

_COLUMNS = ("filename", "class", "xmin", "ymin", "xmax", "ymax")
# Their order where a table does not tell it.
_BARE = ("filename", "xmin", "ymin", "xmax", "ymax", "class")


def find(files: Files) -> list[Path]:
    """CSV files whose head has the six columns."""
    tables = files.ending(".csv")
    return [path for path in tables if _has_columns(begin := files.beginning(path)) or _bare(begin)]


def _has_columns(text: str) -> bool:
    head = text.split("\n", 1)[0].strip().lower().replace('"', "").split(",")
    return set(_COLUMNS) <= set(head)


def _bare(text: str) -> bool:
    """Whether a table begins without a head: `x.jpg,10,12,30,36,cell`, as for keras-retinanet."""
    cells = text.split("\n", 1)[0].strip().split(",")
    numbers = cells[1:5]
    return (
        len(cells) == 6
        and cells[0].lower().endswith(SUFFIXES)
        and all(re.fullmatch(r"-?\d+(\.\d+)?|", number) for number in numbers)
    )


def read(file: Path, out: Builder) -> None:
    """All boxes of a table."""
    text = text_of(file)
    names = _BARE if _bare(text) else None
    for row in csv.DictReader(io.StringIO(text), names):
        row = {(key or "").strip().lower(): value for key, value in row.items()}
        if names and not any(row[key] for key in _COLUMNS[1:]):  # an image without objects
            out.image(row["filename"], file)
            continue
        try:
            corners = [float(row[key]) for key in _COLUMNS[2:]]
            size = int(float(row.get("height") or 0)), int(float(row.get("width") or 0))
        except (TypeError, ValueError) as error:
            raise NormdetError(f"{file} has a row that is not numbers") from error
        image = out.image(row["filename"], file, size)
        if image:
            out.add(image, row["class"] or "", box=corners_box(*corners))


FORMAT = Format("csv", "a table of boxes: filename, class, xmin, ymin, xmax, ymax", find, read)
