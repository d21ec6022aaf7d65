"""The shared part of the formats of labelling tools: how to recognize one, and what to fill in.

The standard library reads each format. They are small JSON, XML, CSV and text files, and the
packages that read them depend on a viewer, OpenCV or a web client. All are brought to COCO's form,
so that :mod:`normdet.data.coco` checks their boxes, masks and names.
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from normdet.data.coco import dataset_of
from normdet.data.image_file import SUFFIXES, read_header
from normdet.data.names import Finder
from normdet.data.records import MAX_BOX_FAULTS, Dataset, are_finite
from normdet.errors import NormdetError
from normdet.files.faults import Report
from normdet.files.read import read_text
from normdet.files.words import first_of
from normdet.medical.readers.find import walk

# This many first bytes of a file show its format.
_PROBE = 1 << 16
# The number of corners of the polygon for an ellipse.
_ELLIPSE = 48
# The largest text of one annotation file.
MAX_TEXT = 1 << 28


@dataclass(frozen=True)
class Format:
    """The file format of one tool.

    Attributes:
        name: as `--kind` takes it.
        text: its description for the help.
        find: returns those files of a source that hold annotations of this format.
        read: adds the content of one such file to a :class:`Builder`.
    """

    name: str
    text: str
    find: Callable[["Files"], list[Path]]
    read: Callable[[Path, "Builder"], None]


class Files:
    """The files below a folder, or one file, with their first bytes; each is opened once."""

    def __init__(self, root: Path):
        self.root = root
        self._begins: dict[Path, str] = {}
        self._ends: dict[Path, str] = {}

    @cached_property
    def all(self) -> list[Path]:
        """Every file, sorted, without hidden ones and links that lead out."""
        if self.root.is_file():
            return [self.root]
        return list(walk(self.root, report=lambda sentence: None))

    def ending(self, *suffixes: str) -> list[Path]:
        """The files with this ending."""
        return [path for path in self.all if path.name.lower().endswith(suffixes)]

    @cached_property
    def images(self) -> set[str]:
        """The paths of all images, without endings."""
        return {str(path.with_suffix("")) for path in self.ending(*SUFFIXES)}

    def beginning(self, path: Path) -> str:
        """The first letters of a file; "" if it cannot be read."""
        if path not in self._begins:
            try:
                with open(path, "rb") as file:
                    text = file.read(_PROBE)
            except OSError:
                text = b""
            self._begins[path] = text.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
        return self._begins[path]

    def json_with(
        self, *keys: str, opening: str = "{[", endings: tuple[str, ...] = (".json",)
    ) -> list[Path]:
        """JSON files that begin so and have all these keys near their beginning or end."""
        return [
            path
            for path in self.ending(*endings)
            if self.beginning(path)[:1] and self.beginning(path)[0] in opening
            and all(f'"{key}"' in self.beginning(path) or f'"{key}"' in self._end(path)
                    for key in keys)
        ]  # fmt: skip

    def _end(self, path: Path) -> str:
        """The last letters of a file that is longer than its beginning."""
        if len(self.beginning(path)) < _PROBE // 4:  # letters have up to four bytes
            return ""
        if path not in self._ends:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(-min(_PROBE, file.seek(0, os.SEEK_END)), os.SEEK_END)
                self._ends[path] = file.read().decode("utf-8", "ignore")
        return self._ends.get(path, "")


@dataclass
class Builder:
    """Collects images and objects, and returns them as the content of a COCO file.

    Args:
        root: the source.
        report: called with a sentence on an image that cannot be found or read.
        images: a folder that is searched first.
        max_box_faults: see :func:`normdet.data.coco.load_coco`.

    Attributes:
        sources: the file that first named each image, by the image's path.
    """

    root: Path
    report: Report
    images: Path | None = None
    max_box_faults: float = MAX_BOX_FAULTS
    notes: list[str] = field(default_factory=list)
    sources: dict[str, Path] = field(default_factory=dict)
    _images: dict[str, dict] = field(default_factory=dict)
    _annotations: list[dict] = field(default_factory=list)
    _categories: dict[str, int] = field(default_factory=dict)
    _left_out: Counter = field(default_factory=Counter)
    _last: str | None = None
    _number: int = 0

    def __post_init__(self) -> None:
        folder = self.root if self.root.is_dir() else self.root.parent
        roots = [self.images] if self.images else []
        self.finder = Finder([*roots, folder], beside_source=True)

    def declare(self, names: Iterable[str]) -> None:
        """Add classes in their order, whether or not they occur."""
        for name in names:
            self._categories.setdefault(" ".join(str(name).split()), len(self._categories))

    def image(self, name: str, source: Path, size: Sequence[Any] | None = None) -> dict | None:
        """Add an image that a file names; if it is missing, report that and return None.

        Args:
            name: as the tool writes it, or a path.
            source: the annotation file.
            size: the height and width that the file states, if any.

        Returns:
            A dict with `height` and `width` as the loader sees them, for :meth:`add`.
        """
        self._last = None
        try:
            path = self.finder(name, source)
            if path is None:
                raise NormdetError(f"{source} is for the image {name}, which is not there")
            header = read_header(path)
            stated = tuple(size) if size and all(size) else None
            if stated and stated != (header.height, header.width):
                raise NormdetError(
                    f"{path} has {header.width}x{header.height} pixels, its annotations in "
                    f"{source.name} are for {stated[1]}x{stated[0]}"
                )
        except NormdetError as error:
            self.report(str(error))
            return None
        self._last = key = str(path)
        self.sources.setdefault(key, source)
        if key not in self._images:
            self._number += 1
            size = {"height": header.height, "width": header.width}
            self._images[key] = {"id": self._number, "file_name": key, **size}
        return self._images[key]

    def add(
        self,
        image: dict,
        label: str,
        *,
        box: Sequence[float] | None = None,
        polygons: Sequence[Sequence[float]] = (),
        holes: Sequence[Sequence[float]] = (),
        rle: dict | None = None,
        crowd: bool = False,
    ) -> None:
        """Add an object.

        Args:
            image: of :meth:`image`.
            label: its class.
            box: x, y, width, height; by default that of the mask.
            polygons: outlines `x0, y0, x1, y1, ...`; several are parts of one object.
            holes: outlines of regions inside that are not part of it.
            rle: a mask instead of outlines.
            crowd: whether it is to be ignored.
        """
        label = " ".join(str(label).split()) or "object"
        mask: Any = rle or [list(map(float, line)) for line in polygons if len(line) >= 6] or None
        if holes and isinstance(mask, list):
            mask = without_holes(mask, holes, image["height"], image["width"])
        self.declare([label])
        entry: dict[str, Any] = {
            "image_id": image["id"],
            "category_id": self._categories[label],
            "iscrowd": int(crowd),
        }
        if box is not None:
            entry["bbox"] = list(map(float, box))
        elif mask is None:
            self.leave_out("shapes without an area")
            return
        if mask is not None:
            entry["segmentation"] = mask
        self._annotations.append(entry)

    def drop_last(self) -> None:
        """Leave out the image in which reading stopped: some of its objects are not known."""
        if self._last is not None:
            gone = self._images.pop(self._last)["id"]
            self._annotations = [one for one in self._annotations if one["image_id"] != gone]
            self._last = None

    def _unnamed(self) -> list[str]:
        """The images of the source that no file named."""
        known = {os.path.realpath(path) for path in self._images}
        return [
            str(path.relative_to(self.root))
            for path in Files(self.root).ending(*SUFFIXES)
            if os.path.realpath(path) not in known
        ]

    def leave_out(self, what: str) -> None:
        """Count a point, a line or the like, which no detector finds."""
        self._left_out[what] += 1

    def dataset(self) -> Dataset:
        """The collected images and objects.

        Raises:
            NormdetError: there is no image or no class, or boxes disagree as in
                :func:`load_coco`.
        """
        if not self._images:
            raise NormdetError(f"{self.root} gave no image: see above")
        content = {
            "images": list(self._images.values()),
            "annotations": [
                {"id": number, **entry} for number, entry in enumerate(self._annotations, start=1)
            ],
            "categories": [{"id": n, "name": name} for name, n in self._categories.items()],
        }
        folder = self.root if self.root.is_dir() else self.root.parent
        dataset = dataset_of(content, self.root, folder, _Found(), self.report, self.max_box_faults)
        dataset.notes.extend(self.finder.said(self.root))
        dataset.notes.extend(
            f"{self.root}: left out {count} {what}" for what, count in self._left_out.items()
        )
        if self.root.is_dir() and (unnamed := self._unnamed()):
            dataset.notes.append(
                f"{self.root}: left out {len(unnamed)} images that no annotation is for: "
                f"{first_of(unnamed)}"
            )
        dataset.notes.extend(self.notes)
        return dataset


class _Found(Finder):
    """Paths that were found already."""

    def __init__(self):
        super().__init__([])

    def __call__(self, name: str, source: Path) -> Path | None:
        return Path(name)


def without_holes(
    polygons: Sequence[Sequence[float]], holes: Sequence[Sequence[float]], height: int, width: int
) -> Any:
    """The RLE of outlines without their holes; the outlines if they cannot be drawn."""
    lines = [*polygons, *holes]
    if not all(are_finite(line) and len(line) >= 6 and len(line) % 2 == 0 for line in lines):
        return [list(line) for line in polygons]
    for line in lines:
        if min(line) < -max(height, width) or max(line) > 2 * max(height, width):
            return [list(line) for line in polygons]

    def drawn(outlines: Sequence[Sequence[float]]) -> np.ndarray:
        outlines = [list(map(float, line)) for line in outlines]
        return mask_util.decode(mask_util.merge(mask_util.frPyObjects(outlines, height, width)))

    mask = drawn(polygons) & ~(drawn(holes) > 0)
    return rle_of(mask)


def rle_of(mask: np.ndarray) -> dict:
    """The compressed RLE of a mask `(H, W)`, with counts as text."""
    rle = mask_util.encode(np.asfortranarray(mask > 0, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def pasted(part: np.ndarray, x: int, y: int, image: dict) -> dict | None:
    """The RLE of a mask `(h, w)` with its upper left pixel at `x, y`; None outside the image."""
    whole = np.zeros((image["height"], image["width"]), np.uint8)
    top, left = max(y, 0), max(x, 0)
    inside = part[top - y : image["height"] - y, left - x : image["width"] - x]
    if not inside.any():
        return None
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return rle_of(whole)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> list[float]:
    """The outline of an ellipse about `x, y`."""
    angles = np.linspace(0, 2 * np.pi, _ELLIPSE, endpoint=False)
    turn = np.deg2rad(degrees)
    along, across = rx * np.cos(angles), ry * np.sin(angles)
    xs = x + along * np.cos(turn) - across * np.sin(turn)
    ys = y + along * np.sin(turn) + across * np.cos(turn)
    return np.stack([xs, ys], axis=1).ravel().tolist()


def rectangle(x: float, y: float, width: float, height: float, degrees: float) -> list[float]:
    """The outline of a rectangle that is turned about its upper left corner."""
    turn = np.deg2rad(degrees)
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (corners @ rotation + (x, y)).ravel().tolist()


def corners_box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """x, y, width and height from any two opposite corners."""
    return [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]


def flat(points: Iterable[Sequence[float]]) -> list[float]:
    """`x0, y0, x1, y1, ...` of pairs."""
    return [float(value) for point in points for value in point[:2]]


def text_of(path: Path, largest: int = MAX_TEXT) -> str:
    """The text of a file; see :func:`normdet.files.read.read_text`."""
    return read_text(path, largest)


def json_values(path: Path) -> list[Any]:
    """The values of a file that holds a JSON list, or one JSON value a line.

    Raises:
        NormdetError: as :func:`text_of`, or what it holds is not JSON.
    """
    text = text_of(path)
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(text)
        return content if isinstance(content, list) else [content]
    values = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            values += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise NormdetError(f"{path} is not JSON in line {number}: {error}") from error
    return values


def points(entries: Iterable[dict], x: str = "x", y: str = "y") -> list[float]:
    """`x0, y0, x1, y1, ...` of points that are objects."""
    return [float(entry[key]) for entry in entries for key in (x, y)]


def same_stem(path: Path, below: str = "") -> str:
    """The name of the image that an annotation file is named after: its path without its ending."""
    name = re.sub(r"\.(geo)?json$|\.(txt|xml|csv)$", "", path.name, flags=re.I)
    return os.path.join(below, name) if below else name
