"""SuperAnnotate: a JSON file for each image, of a project of vectors or of pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.coco import read_json
from normdet.data.image_file import read_pages
from normdet.data.slices import MAX_PIXELS
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import (
    Builder,
    Files,
    Format,
    corners_box,
    ellipse,
    rle_of,
)

_ENDINGS = ("___objects.json", "___pixel.json", ".json")


def find(files: Files) -> list[Path]:
    """JSON files with metadata and instances."""
    return [
        path
        for path in files.json_with("metadata", "instances", opening="{")
        if '"className"' in (begin := files.beginning(path)) or '"classId"' in begin
        or path.name.endswith(_ENDINGS[:2])
    ]  # fmt: skip


def read(file: Path, out: Builder) -> None:
    """One image's instances."""
    content = read_json(file)
    about = content["metadata"]
    name = about.get("name") or next(
        file.name.removesuffix(end) for end in _ENDINGS if file.name.endswith(end)
    )
    image = out.image(str(name), file, (about.get("height"), about.get("width")))
    if image is None:
        return
    colours: np.ndarray | None = None
    for item in content["instances"]:
        label = item.get("className") or item.get("classId") or ""
        if "parts" in item:
            colours = _colours(file, image) if colours is None else colours
            mask = np.isin(colours, [int(part["color"].lstrip("#"), 16) for part in item["parts"]])
            if mask.any():
                out.add(image, label, rle=rle_of(mask))
            else:
                out.leave_out("instances without a pixel")
        elif item.get("type") not in ("tag", "meta"):
            _add(out, image, label, item)


def _add(out: Builder, image: dict, label: str, item: dict) -> None:
    kind, points = item.get("type"), item.get("points")
    if kind == "bbox":
        out.add(image, label, box=corners_box(*_numbers(points, "x1", "y1", "x2", "y2")))
    elif kind == "rbbox":
        line = _numbers(points, "x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
        out.add(image, label, polygons=[line])
    elif kind == "polygon":
        out.add(image, label, polygons=[points], holes=item.get("exclude") or ())
    elif kind == "ellipse":
        numbers = _numbers(item, "cx", "cy", "rx", "ry")
        out.add(image, label, polygons=[ellipse(*numbers, float(item.get("angle") or 0))])
    else:
        out.leave_out(f"instances of the kind {kind}")


def _numbers(entry: Any, *keys: str) -> Sequence[float]:
    return [float(entry[key]) for key in keys]


def _colours(file: Path, image: dict) -> np.ndarray:
    """The colour of each pixel of the mask beside a file, as one number `(H, W)`."""
    path = file.with_name(file.name.removesuffix(_ENDINGS[1]) + "___save.png")
    if not path.is_file():
        raise NormdetError(f"{file} belongs to {path.name}, which is not there")
    (page,) = read_pages(path, max_pixels=MAX_PIXELS, labels=True)
    if page.ndim != 3 or page.shape[:2] != (image["height"], image["width"]):
        raise NormdetError(f"{path} is no picture in colours of its image's size")
    red, green, blue = (page[..., channel].astype(np.int64) for channel in range(3))
    return red << 16 | green << 8 | blue


FORMAT = Format("superannotate", "SuperAnnotate's JSON for each image", find, read)
