"""labelme: a JSON file beside each picture."""

import base64
import io
from collections.abc import Sequence
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
    ellipse,
    flat,
    pasted,
    same_stem,
)


def find(files: Files) -> list[Path]:
    """JSON with shapes and the path of an image."""
    shaped = files.json_with("shapes", opening="{")
    # What is cut short may lack its shapes.
    return sorted({*shaped, *files.json_with("imageData", opening="{")})


def read(file: Path, out: Builder) -> None:
    """One picture's shapes."""
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise NormdetError(f"{file} is not labelme's: it has no list shapes")
    size = content.get("imageHeight"), content.get("imageWidth")
    image = out.image(str(content.get("imagePath") or same_stem(file)), file, size)
    if image is None:
        return
    for shape in _joined(content["shapes"]):
        label, kind = shape.get("label", ""), shape.get("shape_type") or "polygon"
        points = shape.get("points") or []
        if kind == "polygon":
            out.add(image, label, polygons=[flat(part) for part in shape.get("parts", [points])])
        elif kind == "rectangle" and len(points) >= 2:
            xs, ys = zip(*(point[:2] for point in points), strict=True)
            out.add(image, label, box=corners_box(min(xs), min(ys), max(xs), max(ys)))
        elif kind == "circle" and len(points) == 2:
            (x, y), edge = points[0][:2], points[1][:2]
            radius = float(np.hypot(edge[0] - x, edge[1] - y))
            out.add(image, label, polygons=[ellipse(x, y, radius, radius)])
        elif kind == "mask" and shape.get("mask") and points:
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
                part = np.asarray(picture.convert("L")) > 0
            rle = pasted(part, round(points[0][0]), round(points[0][1]), image)
            if rle:
                out.add(image, label, rle=rle)
        else:
            out.leave_out(f"shapes of the kind {kind}")


def _joined(shapes: Sequence[dict]) -> list[dict]:
    """Polygons of one label and group are parts of one object; they get its `parts`."""
    groups: dict[tuple, dict] = {}
    found = []
    for shape in shapes:
        group = shape.get("group_id")
        if group is None or (shape.get("shape_type") or "polygon") != "polygon":
            found.append(shape)
            continue
        key = str(shape.get("label")), str(group)
        if key not in groups:
            groups[key] = {**shape, "parts": []}
            found.append(groups[key])
        groups[key]["parts"].append(shape.get("points") or [])
    return found


FORMAT = Format("labelme", "labelme's JSON beside each picture", find, read)
