"""A table of boxes, as Roboflow and TensorFlow's tools write it."""

import csv
import io
from pathlib import Path

from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, corners_box, text_of

_COLUMNS = ("filename", "class", "xmin", "ymin", "xmax", "ymax")


def find(files: Files) -> list[Path]:
    """CSV files whose head has the six columns."""
    return [path for path in files.ending(".csv") if _has_columns(files.beginning(path))]


def _has_columns(text: str) -> bool:
    head = text.split("\n", 1)[0].strip().lower().replace('"', "").split(",")
    return set(_COLUMNS) <= set(head)


def read(file: Path, out: Builder) -> None:
    """All boxes of a table."""
    for row in csv.DictReader(io.StringIO(text_of(file))):
        row = {(key or "").strip().lower(): value for key, value in row.items()}
        try:
            corners = [float(row[key]) for key in _COLUMNS[2:]]
            size = int(float(row.get("height") or 0)), int(float(row.get("width") or 0))
        except (TypeError, ValueError) as error:
            raise NormdetError(f"{file} has a row that is not numbers: {error}") from error
        image = out.image(row["filename"], file, size)
        if image:
            out.add(image, row["class"] or "", box=corners_box(*corners))


FORMAT = Format("csv", "a table of boxes: filename, class, xmin, ymin, xmax, ymax", find, read)
