"""LabelMe's XML of the browser tool, which CVAT exports as "LabelMe"."""

from pathlib import Path

from normdet.files.read import parse_xml
from normdet.medical.prepare.formats.base import Builder, Files, Format, same_stem


def find(files: Files) -> list[Path]:
    """XML with outlines of points."""
    return [
        path
        for path in files.ending(".xml")
        if "<annotation" in (begin := files.beginning(path)) and "<pt>" in begin
    ]


def read(file: Path, out: Builder) -> None:
    """One image's polygons."""
    root = parse_xml(file)
    size = [int(root.findtext(f"imagesize/{key}") or 0) for key in ("nrows", "ncols")]
    names = [" ".join((root.findtext("filename") or "").split()), same_stem(file)]
    known = [name for name in names if name and out.finder.knows(name, file)]
    image = out.image(known[0] if known else names[-1], file, size)
    for item in root.iter("object") if image else ():
        points = [
            float(point.findtext(axis)) for point in item.iter("pt") for axis in ("x", "y")
        ]  # fmt: skip
        if (item.findtext("deleted") or "0").strip() == "1":
            continue
        if points:
            out.add(image, item.findtext("name") or "", polygons=[points])
        else:
            out.leave_out("objects that are no polygons")


FORMAT = Format("labelme-xml", "LabelMe's XML beside each image", find, read)
