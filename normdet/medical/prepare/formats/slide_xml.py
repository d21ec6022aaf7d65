"""Outlines of Aperio ImageScope and ASAP: an XML file for each image (MoNuSeg)."""

from pathlib import Path
from xml.etree.ElementTree import Element

from normdet.files.read import parse_xml
from normdet.medical.prepare.formats.base import MAX_TEXT, Builder, Files, Format, same_stem


def find(files: Files) -> list[Path]:
    """XML with regions of vertices, or with ASAP's root."""
    return [
        path
        for path in files.ending(".xml")
        if "<ASAP_Annotations" in (begin := files.beginning(path))
        or ("<Annotations" in begin and "<Annotation " in begin)
    ]


def read(file: Path, out: Builder) -> None:
    """One image's outlines."""
    root = parse_xml(file, MAX_TEXT)
    image = out.image(same_stem(file), file)
    if image is None:
        return
    for part in root.iter("Annotation"):
        if root.tag == "ASAP_Annotations":
            _asap(out, image, part)
        else:
            _aperio(out, image, part)


def _aperio(out: Builder, image: dict, part: Element) -> None:
    """Regions marked negative are cut out of the others of their layer."""
    label = part.get("Name") or "object"
    lines = [(region, _line(region, "Vertex")) for region in part.iter("Region")]
    holes = [line for region, line in lines if region.get("NegativeROA") == "1"]
    for region, line in lines:
        if region.get("NegativeROA") == "1":
            continue
        if len(line) < 6:
            out.leave_out("regions of fewer than three points")
            continue
        # A hole lies in the region that holds its first point.
        inside = [hole for hole in holes if _holds(line, hole[0], hole[1])]
        out.add(image, label, polygons=[line], holes=inside)


def _asap(out: Builder, image: dict, part: Element) -> None:
    kind, group = part.get("Type", ""), part.get("PartOfGroup")
    label = group if group and group != "None" else "object"
    line = _line(part, "Coordinate")
    if kind in ("Polygon", "Spline", "Rectangle") and len(line) >= 6:
        out.add(image, label, polygons=[line])
    else:
        out.leave_out(f"annotations of the kind {kind}")


def _line(entry: Element, tag: str) -> list[float]:
    return [float(point.get(key)) for point in entry.iter(tag) for key in ("X", "Y")]


def _holds(line: list[float], x: float, y: float) -> bool:
    """Whether a point lies in an outline, by the edges that a ray to the right crosses."""
    corners = list(zip(line[::2], line[1::2], strict=True))
    inside = False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            inside = not inside
    return inside


FORMAT = Format("slide-xml", "Aperio's or ASAP's XML beside each image", find, read)
