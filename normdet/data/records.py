"""What the readers share: the form they return, and the checks on boxes and paths."""

import logging
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normdet.errors import NormdetError
from normdet.files.words import first_of

logger = logging.getLogger(__name__)

# Of Unicode: control characters, halves of letters, separators of lines and paragraphs.
_UNWRITTEN = ("Cc", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class Dataset:
    """A dataset as detectron2 takes it.

    Attributes:
        records: one dict per image, in detectron2's standard format.
        classes: names in the order of the contiguous `category_id`.
        category_ids: the annotation file's id of each class, in the same order.
        json_file: a COCO file that states exactly these records, fit for evaluation, or None.
        image_root: folder of the images.
        dropped: what was left out, one phrase per box.
    """

    records: list[dict]
    classes: list[str]
    category_ids: list[int]
    json_file: Path | None
    image_root: Path
    dropped: list[str] = field(default_factory=list)


def are_finite(values: Iterable[Any]) -> bool:
    """Whether all are finite numbers; their sum is then finite too, but for extreme values."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):  # no number, or a whole one of hundreds of digits
        return False


def check_class_name(name: str, source: Any) -> None:
    """Refuse a name that cannot be written or drawn on one line.

    Raises:
        NormdetError: naming it and `source`.
    """
    if not name.strip() or any(unicodedata.category(letter) in _UNWRITTEN for letter in name):
        raise NormdetError(f"{source} has the class name {name!r}, which is no line of text")


def box_fault(x0: float, y0: float, x1: float, y1: float, width: int, height: int) -> str | None:
    """Why a box cannot be trained on or matched, or None."""
    if not are_finite((x0, y0, x1, y1)):
        return "not finite"
    if x1 <= x0 or y1 <= y0:
        return "no area"
    if min(x1, width) <= max(x0, 0) or min(y1, height) <= max(y0, 0):
        return "outside the image"
    return None


def warn_dropped(
    dropped: Sequence[str], total: int, source: Path, report: Callable[[str], None] | None = None
) -> None:
    """One line saying how many of `total` boxes were left out of `source`, naming the first.

    Where there is a `report`, it is called with a sentence on each instead.
    """
    if report:
        for phrase in dropped:
            report(f"{source}: left out {phrase}")
    elif dropped:
        logger.warning(
            "%s: left out %d of %d boxes: %s", source, len(dropped), total, first_of(dropped)
        )


def confined(folder: Path, name: str, source: Path) -> Path:
    """`folder / name`, which must lie inside `folder` once links are followed.

    A link that is `folder` itself is followed first, so a dataset folder may be a link.

    Raises:
        NormdetError: where the name is absolute, climbs out, is a link to a place outside, or is
            none that a file can have.
    """
    root = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(root, name))
    except ValueError as error:  # a null character, or half a letter
        raise NormdetError(f"{source} names {name!r}, which is no file name") from error
    if os.path.isabs(name) or os.path.commonpath([root, path]) != root:
        raise NormdetError(f"{source} names {name!r}, which lies outside the image folder {folder}")
    return Path(folder, name)
