"""Scalabel's JSON, which BDD100K is published in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from normdet.data.coco import read_json
from normdet.medical.prepare.formats.base import Builder, Files, Format

# The number of points that a curve is drawn with.
_STEPS = 8


def find(files: Files) -> list[Path]:
    """Lists of frames with labels, or files that hold one as `frames`."""
    return [
        path
        for path in files.json_with("labels")
        if '"box2d"' in (begin := files.beginning(path)) or '"poly2d"' in begin
    ]


def read(file: Path, out: Builder) -> None:
    """All frames of a file."""
    content = read_json(file)
    if isinstance(content, dict):
        config = content.get("config") or {}
        out.declare(entry["name"] for entry in config.get("categories") or ())
        content = content["frames"] if "frames" in content else [content]
    for frame in content:
        # A folder of videos holds frames of one name each.
        names = [f"{frame['videoName']}/{frame['name']}"] if frame.get("videoName") else []
        names = [name for name in [*names, frame["name"]] if out.finder.knows(name, file)]
        image = out.image(names[0] if names else frame["name"], file, _size(frame))
        for item in (frame.get("labels") or ()) if image else ():
            _add(out, image, item)


def _size(frame: dict) -> tuple | None:
    size = frame.get("size")
    return (size.get("height"), size.get("width")) if isinstance(size, dict) else None


def _add(out: Builder, image: dict, item: dict) -> None:
    label, crowd = item.get("category") or "", bool((item.get("attributes") or {}).get("crowd"))
    lines = [line for line in item.get("poly2d") or () if line.get("closed", True)]
    if lines:
        outlines = [_outline(line["vertices"], line.get("types") or "") for line in lines]
        out.add(image, label, polygons=outlines, crowd=crowd)
    elif item.get("rle"):
        out.add(image, label, rle=item["rle"], crowd=crowd)
    elif box := item.get("box2d"):
        # The second corner is the last pixel inside.
        x0, y0, x1, y1 = (float(box[key]) for key in ("x1", "y1", "x2", "y2"))
        out.add(image, label, box=[x0, y0, x1 - x0 + 1, y1 - y0 + 1], crowd=crowd)
    else:
        out.leave_out("lines, areas without an end and labels without a box")


def _outline(vertices: Sequence[Sequence[float]], types: str) -> list[float]:
    """The points of an outline, with curves (`C`: two control points and an end) drawn."""
    if "C" not in types:
        return [float(value) for point in vertices for value in point[:2]]
    found: list[np.ndarray] = []
    corners = np.array(vertices, float)[:, :2]
    place = 0
    while place < len(corners):
        if types[place] == "C" and found:
            # The control points lie between the last point and the next that is none.
            control = corners[place : place + 2]
            end = corners[(place + 2) % len(corners)]
            share = np.linspace(0, 1, _STEPS + 1)[1:, None]
            start = found[-1]
            found += list(
                (1 - share) ** 3 * start
                + 3 * (1 - share) ** 2 * share * control[0]
                + 3 * (1 - share) * share**2 * control[-1]
                + share**3 * end
            )
            place += 3
        else:
            found.append(corners[place])
            place += 1
    return np.concatenate(found).tolist()


FORMAT = Format("scalabel", "Scalabel's JSON (BDD100K)", find, read)
