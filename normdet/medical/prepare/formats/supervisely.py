"""Supervisely: a project folder with ann/NAME.json for each img/NAME."""

import base64
import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import (
    Builder,
    Files,
    Format,
    corners_box,
    flat,
    pasted,
    same_stem,
)

# The largest bitmap that is unpacked.
_MOST = 1 << 28


def find(files: Files) -> list[Path]:
    """JSON files in folders `ann` that have objects with a geometry."""
    return [
        path
        for path in files.json_with("objects", "size", opening="{")
        if path.parent.name == "ann" or '"classTitle"' in files.beginning(path)
    ]


def read(file: Path, out: Builder) -> None:
    """One image's objects."""
    content = read_json(file)
    size = content.get("size") or {}
    # ann/x.png.json is for img/x.png.
    name = same_stem(file)
    beside = f"../img/{name}" if file.parent.name == "ann" else name
    stated = size.get("height"), size.get("width")
    place = file.parent.parent / "img" / name
    image = out.image(str(place) if place.is_file() else beside, file, stated)
    for item in content.get("objects") or () if image else ():
        label, kind = item.get("classTitle", ""), item.get("geometryType")
        points = item.get("points") or {}
        if kind == "polygon":
            holes = [flat(line) for line in points.get("interior") or ()]
            out.add(image, label, polygons=[flat(points["exterior"])], holes=holes)
        elif kind == "rectangle":
            out.add(image, label, box=corners_box(*flat(points["exterior"])[:4]))
        elif kind == "bitmap" and item.get("bitmap"):
            part = _bitmap(item["bitmap"]["data"], file)
            x, y = item["bitmap"]["origin"]
            if rle := pasted(part, int(x), int(y), image):
                out.add(image, label, rle=rle)
        else:
            out.leave_out(f"objects of the kind {kind}")


def _bitmap(data: str, file: Path) -> np.ndarray:
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(base64.b64decode(data), _MOST)
    if unpacker.unconsumed_tail:
        raise NormdetError(f"{file} has a bitmap that unpacks to more than {_MOST >> 20} MB")
    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("RGBA") if picture.mode == "P" else picture)
    return pixels[..., -1] > 0 if pixels.ndim == 3 else pixels > 0


FORMAT = Format("supervisely", "a Supervisely project: ann/ and img/", find, read)
