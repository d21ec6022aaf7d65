"""FiftyOne's own dataset folder: samples.json beside data/."""

import base64
import io
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.files.read import read_npy_head
from normdet.medical.prepare.formats.base import Builder, Files, Format, pasted

_MOST = 1 << 28


def find(files: Files) -> list[Path]:
    """A list of samples."""
    return [path for path in files.json_with("samples", "filepath", opening="{")]


def read(file: Path, out: Builder) -> None:
    """All samples."""
    content = read_json(file)
    samples = content.get("samples")
    if not isinstance(samples, list):
        raise NormdetError(f"{file} is not FiftyOne's: it has no list samples")
    for sample in samples:
        image = out.image(str(sample.get("filepath", "")), file)
        for value in sample.values() if image else ():
            if not isinstance(value, dict):
                continue
            for item in value.get("detections") or ():
                _detection(out, image, item, file)
            for item in value.get("polylines") or ():
                if item.get("closed"):
                    size = image["width"], image["height"]
                    lines = [
                        [v * side for point in line for v, side in zip(point, size, strict=True)]
                        for line in item.get("points") or ()
                    ]
                    out.add(image, item.get("label") or "", polygons=lines)


def _detection(out: Builder, image: dict, item: dict, file: Path) -> None:
    x, y, w, h = (
        value * side
        for value, side in zip(
            item["bounding_box"], (image["width"], image["height"]) * 2, strict=True
        )
    )
    part = _mask(item.get("mask"), file)
    rle = None if part is None else pasted(part, round(x), round(y), image)
    out.add(image, item.get("label") or "", box=[x, y, w, h], rle=rle)


def _mask(value: Any, file: Path) -> np.ndarray | None:
    text = value.get("$binary") if isinstance(value, dict) else None
    text = text.get("base64") if isinstance(text, dict) else text
    if not isinstance(text, str):
        return None
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(base64.b64decode(text), _MOST)
    if unpacker.unconsumed_tail:
        raise NormdetError(f"{file} has a mask that unpacks to more than {_MOST >> 20} MB")
    shape, dtype = read_npy_head(io.BytesIO(content))
    # numpy sets aside what the head says before it reads.
    if math.prod(shape) * dtype.itemsize > len(content):
        raise NormdetError(f"{file} has a mask that is cut short")
    return np.load(io.BytesIO(content), allow_pickle=False) > 0


FORMAT = Format("fiftyone", "FiftyOne's samples.json beside data/", find, read)
