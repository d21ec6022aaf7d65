"""Datumaro's JSON, as CVAT and Intel Geti write it: annotations/SUBSET.json and images/."""

from collections.abc import Iterable
from pathlib import Path

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, corners_box, ellipse


def find(files: Files) -> list[Path]:
    """JSON with categories and items."""
    return [
        path
        for path in files.json_with("categories", "items", opening="{")
        if '"label"' in files.beginning(path)
    ]


def read(file: Path, out: Builder) -> None:
    """All items of a subset."""
    content = read_json(file)
    labels = ((content.get("categories") or {}).get("label") or {}).get("labels") or []
    names = [str(label["name"]) for label in labels]
    out.declare(names)
    for item in content["items"]:
        about = item.get("image") or item.get("media") or {}
        name, size = about.get("path") or item["id"], about.get("size")
        image = out.image(str(name), file, size)
        for shapes in _objects(item.get("annotations") or ()) if image else ():
            number = shapes[0].get("label_id")
            if number is None:
                out.leave_out("shapes without a label")
                continue
            if not 0 <= number < len(names):
                raise NormdetError(f"{file} has the label {number}, and {len(names)} are named")
            _add(out, image, names[number], shapes)


def _objects(annotations: Iterable[dict]) -> Iterable[list[dict]]:
    """The shapes of each object: those of one label in one group, which 0 is not."""
    groups: dict[tuple, list[dict]] = {}
    for place, shape in enumerate(annotations):
        group = shape.get("group") or None
        key = (group, shape.get("label_id")) if group else (None, place)
        groups.setdefault(key, []).append(shape)
    return groups.values()


def _add(out: Builder, image: dict, label: str, shapes: list[dict]) -> None:
    outlines = [line for shape in shapes if (line := _outline(shape))]
    masks = [shape["rle"] for shape in shapes if shape.get("type") == "mask"]
    boxes = [shape["bbox"] for shape in shapes if shape.get("type") == "bbox"]
    if masks:
        for rle in masks:
            out.add(image, label, rle=rle)
    elif outlines:
        out.add(image, label, polygons=outlines)
    for box in boxes if not masks and not outlines else ():
        out.add(image, label, box=box)
    if not (masks or outlines or boxes):
        out.leave_out(f"shapes of the kind {shapes[0].get('type')}")


def _outline(shape: dict) -> list[float] | None:
    points = shape.get("points") or ()
    if shape.get("type") == "polygon":
        return list(points)
    if shape.get("type") == "ellipse":
        x, y, width, height = corners_box(*points)
        return ellipse(x + width / 2, y + height / 2, width / 2, height / 2)
    return None


FORMAT = Format("datumaro", "Datumaro's JSON (CVAT, Geti)", find, read)
