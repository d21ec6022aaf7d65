"""Pascal VOC's XML without lists of images: LabelImg, Roboflow, CVAT, Label Studio, FiftyOne."""

from pathlib import Path

from normdet.data.voc import read_objects, stated_size
from normdet.files.read import parse_xml
from normdet.medical.prepare.formats.base import Builder, Files, Format, same_stem


def find(files: Files) -> list[Path]:
    """XML whose root is `annotation`."""
    return [
        path
        for path in files.ending(".xml")
        if "<annotation" in (begin := files.beginning(path)) and "<annotations" not in begin
    ]


def read(file: Path, out: Builder) -> None:
    """One image's boxes."""
    root = parse_xml(file)
    # `filename` may be an old name of the image, so try the XML's own name first.
    image = None
    names = (same_stem(file), " ".join((root.findtext("filename") or "").split()))
    for name in filter(None, names):
        if out.finder.knows(name, file):
            image = out.image(name, file, stated_size(root))
            break
    else:
        out.image(names[1] or names[0], file)  # named as missing
    for label, (x0, y0, x1, y1) in read_objects(root, file.name) if image else ():
        # Corners count from 1 and are inside the box; a box with equal corners is a mistake.
        width, height = (b - a + 1 if b > a else 0 for a, b in ((x0, x1), (y0, y1)))
        out.add(image, label, box=[x0 - 1, y0 - 1, width, height])


FORMAT = Format("voc-xml", "Pascal VOC's XML files without ImageSets (LabelImg)", find, read)
