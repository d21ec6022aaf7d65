"""QuPath's GeoJSON: detections and annotations of the image that the file is named after."""

from pathlib import Path

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, flat, same_stem

# The type of a QuPath object that only contains others.
_HOLDERS = ("root", "tma_core")
# Those that it finds; annotations without a class are where it looked.
_DETECTIONS = ("detection", "cell", "tile")


def find(files: Files) -> list[Path]:
    """Files of features."""
    return [
        path
        for path in files.ending(".geojson", ".json")
        if '"Feature' in files.beginning(path) and '"geometry"' in files.beginning(path)
    ]


def read(file: Path, out: Builder) -> None:
    """One image's objects."""
    content = read_json(file)
    if isinstance(content, dict):
        content = content.get("features", [content])
    if not isinstance(content, list):
        raise NormdetError(f"{file} is not GeoJSON: it has no list features")
    image = out.image(same_stem(file), file)
    kinds = {_kind(feature) for feature in content if isinstance(feature, dict)}
    regions = bool(kinds & set(_DETECTIONS))
    for feature in content if image else ():
        geometry, about = feature.get("geometry") or {}, feature.get("properties") or {}
        kind, lines = geometry.get("type"), geometry.get("coordinates")
        classed = about.get("classification") or {}
        if _kind(feature) in _HOLDERS:
            continue
        if regions and not classed and _kind(feature) == "annotation":
            out.leave_out("annotations without a class, in which others are detected")
            continue
        label = classed.get("name") if isinstance(classed, dict) else classed
        label = label or "object"
        if kind == "Polygon":
            parts = [lines]
        elif kind == "MultiPolygon":
            parts = lines
        else:
            out.leave_out(f"features of the kind {kind}")
            continue
        out.add(
            image,
            label,
            polygons=[_open(flat(part[0])) for part in parts],
            holes=[_open(flat(line)) for part in parts for line in part[1:]],
        )


def _kind(feature: dict) -> str:
    about = feature.get("properties") or {}
    return str(about.get("objectType", about.get("object_type", ""))).lower()


def _open(line: list[float]) -> list[float]:
    """The ring without its last point, which in GeoJSON repeats the first."""
    return line[:-2] if line[:2] == line[-2:] and len(line) > 6 else line


FORMAT = Format("geojson", "QuPath's GeoJSON beside each image", find, read)
