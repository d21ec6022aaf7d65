"""Label Studio's JSON, JSON-MIN and CSV: tasks with regions in percent of the image."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import (
    Builder,
    Files,
    Format,
    ellipse,
    rectangle,
    rle_of,
    text_of,
)

_KINDS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels")


def find(files: Files) -> list[Path]:
    """Lists of tasks, and tables with regions in their cells."""
    tables = [path for path in files.ending(".csv") if "original_width" in files.beginning(path)]
    return tables + [
        path
        for path in files.json_with(opening="[")
        if any(f'"{kind}"' in files.beginning(path) for kind in (*_KINDS, "labels"))
        and ('"result"' in files.beginning(path) or '"original_width"' in files.beginning(path))
    ]


def read(file: Path, out: Builder) -> None:
    """All tasks of an export."""
    for task in _rows(file) if file.suffix.lower() == ".csv" else read_json(file):
        if not isinstance(task, dict):
            raise NormdetError(f"{file} is not Label Studio's: a task is no object")
        name = _image_name(task)
        if name is None:
            raise NormdetError(f"{file} is not Label Studio's: a task names no image")
        image = out.image(name, file)
        for region in _regions(task) if image else ():
            _add(out, image, region, file)


def _rows(file: Path) -> Iterable[dict]:
    """The rows of a table as tasks: the same cells as JSON-MIN's values."""
    for row in csv.DictReader(io.StringIO(text_of(file))):
        yield {key: _cell(value) for key, value in row.items() if key}


def _cell(text: Any) -> Any:
    """A list where a cell holds one."""
    try:
        return json.loads(text) if isinstance(text, str) and text.startswith("[") else text
    except ValueError:
        return text


def _image_name(task: dict) -> str | None:
    data = task.get("data") if isinstance(task.get("data"), dict) else task
    named = [data.get(key) for key in ("image", "img", "url", "ocr")]
    named += [value for value in data.values() if isinstance(value, str) and "/" in value]
    return next((value for value in named if isinstance(value, str)), None)


def _regions(task: dict) -> Iterable[dict]:
    """Regions with `value`, from the first person's annotations that were not cancelled."""
    done = task.get("annotations") or task.get("completions")
    if isinstance(done, list):
        kept = [one for one in done if not one.get("was_cancelled")]
        return kept[0].get("result") or [] if kept else []
    values = [value for value in task.values() if isinstance(value, list)]
    return [
        {"value": one, "original_width": one.get("original_width"),
         "original_height": one.get("original_height")}
        for value in values for one in value if isinstance(one, dict) and "original_width" in one
    ]  # fmt: skip


def _add(out: Builder, image: dict, region: dict, file: Path) -> None:
    value = region.get("value") or {}
    label = next((value[kind] for kind in (*_KINDS, "labels") if value.get(kind)), None)
    if not isinstance(label, list):
        return
    height, width = image["height"], image["width"]

    def x(percent: Any) -> float:
        return float(percent) * width / 100

    def y(percent: Any) -> float:
        return float(percent) * height / 100

    try:
        turn = float(value.get("rotation") or 0)
        if "points" in value:
            line = [v for px, py in value["points"] for v in (x(px), y(py))]
            out.add(image, label[0], polygons=[line])
        elif "radiusX" in value:
            rx, ry = x(value["radiusX"]), y(value["radiusY"])
            line = ellipse(x(value["x"]), y(value["y"]), rx, ry, turn)
            out.add(image, label[0], polygons=[line])
        elif "rle" in value:
            mask = brush(value["rle"], height, width)
            out.add(image, label[0], rle=rle_of(mask))
        elif "width" in value:
            box = [x(value["x"]), y(value["y"]), x(value["width"]), y(value["height"])]
            if turn:
                out.add(image, label[0], polygons=[rectangle(*box, turn)])
            else:
                out.add(image, label[0], box=box)
        else:
            out.leave_out("regions of another kind")
    except (KeyError, TypeError, ValueError) as error:
        raise NormdetError(f"{file} has a region that is not numbers") from error


def brush(rle: list[int], height: int, width: int) -> np.ndarray:
    """The mask `(H, W)` of a brush, which is stored as runs of RGBA values in a stream of bits.

    The head gives the number of values, the bits of one value, and four bit lengths of run counts.

    Raises:
        ValueError: the stream does not fill the image.
    """
    bits = np.unpackbits(np.array(rle, np.uint8))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise ValueError("a brush that ends too early")
        number = int("".join(map(str, bits[place : place + count])), 2)
        place += count
        return number

    total, size = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total != height * width * 4:
        raise ValueError("a brush of another size than the image")
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeats = take(1)
        count = take(lengths[take(2)]) + 1
        end = min(done + count, total)
        if repeats:
            values[done:end] = take(size)
        else:
            values[done:end] = [take(size) for _ in range(end - done)]
        done = end
    return values.reshape(height, width, 4)[..., 3] > 0


FORMAT = Format("label-studio", "Label Studio's JSON, JSON-MIN or CSV", find, read)
