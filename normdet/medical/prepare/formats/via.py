"""VGG Image Annotator: a project, its annotations as JSON, or as CSV."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, ellipse, text_of

# The attribute that is a region's class, if several are set.
_CLASS = ("class", "label", "name", "type", "category")
# What a project of version 3 holds, and its numbers of shapes.
_VERSION_3 = ("config", "attribute", "file", "metadata", "view")
_KINDS = {
    2: ("rect", ("x", "y", "width", "height")),
    3: ("circle", ("cx", "cy", "r")),
    4: ("ellipse", ("cx", "cy", "rx", "ry")),
}


def find(files: Files) -> list[Path]:
    """Projects and exports."""
    tables = [
        path for path in files.ending(".csv") if "region_shape_attributes" in files.beginning(path)
    ]
    projects = [
        path
        for path in files.ending(".json")
        if '"_via_img_metadata"' in files.beginning(path)
        or all(f'"{key}"' in files.beginning(path) for key in _VERSION_3)
        or ('"regions"' in files.beginning(path) and '"filename"' in files.beginning(path))
    ]
    return [*projects, *tables]


def read(file: Path, out: Builder) -> None:
    """All images of an export."""
    for name, regions in _csv(file) if file.suffix.lower() == ".csv" else _json(file):
        image = out.image(name, file)
        for shape, attributes in regions if image else ():
            _add(out, image, shape, _label(attributes))


def _json(file: Path) -> Iterable[tuple[str, list]]:
    content = read_json(file)
    if isinstance(content, dict) and {*_VERSION_3} <= content.keys():
        yield from _version_3(content)
        return
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
    entries = content.values() if isinstance(content, dict) else content
    if not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
        raise NormdetError(f"{file} is not VIA's: an entry has no filename")
    for entry in entries:
        regions = entry.get("regions") or []
        regions = regions.values() if isinstance(regions, dict) else regions  # version 1
        yield (
            str(entry["filename"]),
            [
                (region.get("shape_attributes") or {}, region.get("region_attributes") or {})
                for region in regions
            ],
        )


def _version_3(content: dict) -> Iterable[tuple[str, list]]:
    """Shapes are `[kind, x, y, ...]`, and belong to views of files."""
    attributes = content.get("attribute") or {}
    names = {key: about.get("fname") for key, about in content["file"].items()}
    found: dict[str, list] = {str(name): [] for name in names.values()}
    for entry in content["metadata"].values():
        files = (content["view"].get(str(entry.get("vid"))) or {}).get("fid_list") or []
        values = {}
        for key, value in (entry.get("av") or {}).items():
            about = attributes.get(key) or {}
            options = about.get("options") or {}
            values[str(about.get("aname", key))] = options.get(str(value), value)
        kind, *numbers = entry.get("xy") or [0]
        for number in files if kind else ():
            found[str(names[str(number)])].append((_shape(kind, numbers), values))
    return found.items()


def _shape(kind: int, numbers: list) -> dict:
    """A shape of version 3 as version 2 writes it."""
    if kind == 7:
        return {"name": "polygon", "all_points_x": numbers[::2], "all_points_y": numbers[1::2]}
    name, keys = _KINDS.get(kind, (str(kind), ()))
    return {"name": name, **dict(zip(keys, numbers, strict=False))}


def _csv(file: Path) -> Iterable[tuple[str, list]]:
    images: dict[str, list] = {}
    for row in csv.DictReader(io.StringIO(text_of(file))):
        name = row.get("filename") or row.get("#filename") or ""
        regions = images.setdefault(name, [])
        try:
            shape = json.loads(row.get("region_shape_attributes") or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
        except ValueError as error:
            raise NormdetError(f"{file} is not VIA's") from error
        if shape:
            regions.append((shape, attributes))
    return images.items()


def _label(attributes: Any) -> str:
    if not isinstance(attributes, dict):
        return str(attributes or "")
    named = {key.lower(): value for key, value in attributes.items()}
    value = next((named[key] for key in _CLASS if named.get(key)), None)
    value = next(iter(named.values()), "") if value is None else value
    if isinstance(value, dict):  # the state of check boxes
        value = " ".join(str(key) for key, on in value.items() if on)
    return str(value)


def _add(out: Builder, image: dict, shape: dict, label: str) -> None:
    kind = shape.get("name")
    if kind == "rect":
        box = [shape[key] for key in ("x", "y", "width", "height")]
        out.add(image, label, box=box)
    elif kind in ("polygon", "polyline") and len(shape.get("all_points_x", ())) >= 3:
        pairs = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        out.add(image, label, polygons=[[float(v) for pair in pairs for v in pair]])
    elif kind == "circle":
        line = ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
        out.add(image, label, polygons=[line])
    elif kind == "ellipse":
        turn = float(shape.get("theta") or 0) * 57.29577951308232
        line = ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], turn)
        out.add(image, label, polygons=[line])
    else:
        out.leave_out(f"regions of the kind {kind}")


FORMAT = Format("via", "VGG Image Annotator's project, JSON or CSV", find, read)
