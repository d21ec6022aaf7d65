"""Kaggle's tables of masks: an image's name and the runs of an object a row."""

import csv
import io
from pathlib import Path

import numpy as np

from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, rle_of, text_of

_RUNS = ("encodedpixels", "rle", "encoding")
_NAMES = ("imageid", "image_id", "imageid_classid", "id", "image")


def find(files: Files) -> list[Path]:
    """CSV files with a column of runs."""
    return [path for path in files.ending(".csv") if _columns(files.beginning(path))]


def _columns(text: str) -> tuple[str, str] | None:
    """The columns of names and of runs, as the head writes them."""
    head = [cell.strip().strip('"') for cell in text.split("\n", 1)[0].split(",")]
    lower = {cell.lower(): cell for cell in head}
    runs = next((lower[key] for key in _RUNS if key in lower), None)
    name = next((lower[key] for key in _NAMES if key in lower), None)
    return (name, runs) if name and runs else None


def read(file: Path, out: Builder) -> None:
    """All rows; an image without an object has an empty cell."""
    text = text_of(file)
    name, column = _columns(text) or ("", "")
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        image = out.image(_image_name(row[name]), file)
        cell = (row[column] or "").strip()
        if image and cell not in ("", "-1", "nan"):
            out.add(image, row.get("ClassId") or "object", rle=rle_of(_mask(cell, image, file)))


def _image_name(cell: str) -> str:
    """Without the number of a class that some tables put behind it: `x.jpg_3`."""
    head, mark, tail = cell.rpartition("_")
    return head if mark and tail.isdecimal() and "." in head else cell


def _mask(cell: str, image: dict, file: Path) -> np.ndarray:
    """The mask `(H, W)` of starts, counted from 1 down the columns, and lengths."""
    try:
        numbers = np.array(cell.split(), np.int64)
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        whole = image["height"] * image["width"]
        fits = len(starts) == len(lengths) and starts.min() >= 0 and lengths.min() >= 0
        if not fits or (starts + lengths).max() > whole:
            raise ValueError("runs that leave the image")
    except (ValueError, OverflowError) as error:
        raise NormdetError(f"{file} has runs that are no mask of their image") from error
    pixels = np.zeros(whole + 1, np.int64)
    np.add.at(pixels, starts, 1)
    np.add.at(pixels, starts + lengths, -1)
    return (pixels.cumsum()[:-1] > 0).reshape(image["width"], image["height"]).T


FORMAT = Format("rle-table", "Kaggle's tables of runs: ImageId, EncodedPixels", find, read)
