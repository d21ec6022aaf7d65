"""napari's shapes layers saved as CSV, beside the images they are named after."""

import csv
import io
import re
from pathlib import Path

import numpy as np

from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, ellipse, text_of

_HEAD = ("index", "shape-type", "vertex-index", "axis-0", "axis-1")
_LAYER = re.compile(r"[ _-](shapes?|labels?|rois?|annotations?)( \[\d+\])?$", re.I)


def find(files: Files) -> list[Path]:
    """CSV files with napari's head."""
    return [
        path
        for path in files.ending(".csv")
        if set(_HEAD) <= set(files.beginning(path).split("\n", 1)[0].strip().split(","))
    ]


def read(file: Path, out: Builder) -> None:
    """One image's shapes; the last two axes are rows and columns."""
    shapes: dict[str, tuple[str, list]] = {}
    rows = list(csv.DictReader(io.StringIO(text_of(file))))
    axes = sorted(key for key in (rows[0] if rows else {}) if key.startswith("axis-"))[-2:]
    for row in rows:
        kind, points = shapes.setdefault(row["index"], (row["shape-type"], []))
        try:
            points.append((float(row[axes[1]]), float(row[axes[0]])))
        except (TypeError, ValueError) as error:
            raise NormdetError(f"{file} has a row that is not numbers") from error
    names = (file.stem, _LAYER.sub("", file.stem))
    name = next((name for name in names if out.finder.knows(name, file)), names[-1])
    image = out.image(name, file)
    for kind, points in shapes.values() if image else ():
        if kind in ("polygon", "rectangle") and len(points) >= 3:
            # A vertex is a pixel's centre.
            line = (np.array(points) + 0.5).ravel().tolist()
            out.add(image, "object", polygons=[line])
        elif kind == "ellipse" and len(points) == 4:
            corners = np.array(points) + 0.5
            x, y = corners.mean(0)
            along, across = corners[1] - corners[0], corners[2] - corners[1]
            turn = float(np.degrees(np.arctan2(along[1], along[0])))
            rx, ry = np.hypot(*along) / 2, np.hypot(*across) / 2
            out.add(image, "object", polygons=[ellipse(x, y, rx, ry, turn)])
        else:
            out.leave_out(f"shapes of the kind {kind}")


FORMAT = Format("napari", "napari's shapes as CSV beside each image", find, read)
