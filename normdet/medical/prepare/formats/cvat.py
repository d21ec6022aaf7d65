"""CVAT's own XML: one file for all images."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from normdet.errors import NormdetError
from normdet.files.read import parse_xml
from normdet.medical.prepare.formats.base import (
    MAX_TEXT,
    Builder,
    Files,
    Format,
    corners_box,
    ellipse,
    pasted,
    rectangle,
)


def find(files: Files) -> list[Path]:
    """XML whose root is `annotations`."""
    return [path for path in files.ending(".xml") if "<annotations" in files.beginning(path)]


def read(file: Path, out: Builder) -> None:
    """All images of a task or project."""
    root = parse_xml(file, MAX_TEXT)
    out.declare(name for name in (label.findtext("name") for label in root.iter("label")) if name)
    for entry in root.iter("image"):
        with _numbers_of(file):
            size = int(entry.get("height") or 0), int(entry.get("width") or 0)
            image = out.image(entry.get("name") or "", file, size)
            for shape in entry if image else ():
                _add(out, image, shape, file)
    frames: dict[int, dict | None] = {}
    for track in root.iter("track"):
        for shape in track:
            with _numbers_of(file):
                number = int(shape.get("frame") or 0)
                if shape.get("outside") == "1":
                    continue
                if number not in frames:
                    frames[number] = out.image(f"frame_{number:06d}", file)
                if frames[number]:
                    shape.set("label", track.get("label") or "")
                    _add(out, frames[number], shape, file)


@contextlib.contextmanager
def _numbers_of(file: Path) -> Iterator[None]:
    """Inside, a value that is no number is a fault that names the file and quotes none of it."""
    try:
        yield
    except NormdetError:  # a ValueError, too
        raise
    except (ValueError, TypeError) as error:
        raise NormdetError(f"{file} has a shape that is not numbers") from error


def _add(out: Builder, image: dict, shape: Element, file: Path) -> None:
    label = shape.get("label") or ""

    def numbers(*names: str) -> list[float]:
        return [float(shape.get(name)) for name in names]

    if shape.tag == "box":
        x0, y0, x1, y1 = numbers("xtl", "ytl", "xbr", "ybr")
        turn = float(shape.get("rotation") or 0)
        if turn:
            line = np.array(rectangle(0, 0, x1 - x0, y1 - y0, 0)).reshape(4, 2)
            middle = np.array([(x1 - x0) / 2, (y1 - y0) / 2])
            angle = np.deg2rad(turn)
            rotation = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
            line = (line - middle) @ np.array(rotation) + middle + (x0, y0)
            out.add(image, label, polygons=[line.ravel().tolist()])
        else:
            out.add(image, label, box=corners_box(x0, y0, x1, y1))
    elif shape.tag == "polygon":
        points = shape.get("points", "").replace(";", ",").split(",")
        out.add(image, label, polygons=[[float(value) for value in points]])
    elif shape.tag == "ellipse":
        line = ellipse(*numbers("cx", "cy", "rx", "ry"), float(shape.get("rotation") or 0))
        out.add(image, label, polygons=[line])
    elif shape.tag == "mask":
        left, top, width, height = map(round, numbers("left", "top", "width", "height"))
        runs = [int(run) for run in shape.get("rle", "").split(",")]
        if min(runs) < 0 or sum(runs) != width * height or width < 1:
            raise NormdetError(f"{file}: the runs of a mask do not fill it")
        if width > image["width"] or height > image["height"]:  # a few letters can say anything
            raise NormdetError(f"{file}: a mask is larger than its image")
        values = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(height, width)
        if rle := pasted(values > 0, left, top, image):
            out.add(image, label, rle=rle)
    elif shape.tag != "tag":
        out.leave_out(f"shapes of the kind {shape.tag}")


FORMAT = Format("cvat", "CVAT's annotations.xml", find, read)
