"""What the names of folders and files tell: which label belongs to an image, patient, split."""

import re
from collections.abc import Iterable
from pathlib import Path

from normdet.data.readers.find import stem

_LABEL_FOLDER = re.compile(
    r"(labels?|masks?|annotations?|segmentations?|instances?|ground_?truth|gt)(?=tr$|ts$|$)", re.I
)
_IMAGE_FOLDER = re.compile(r"(images?|imgs?|scans?)(?=tr$|ts$|$)", re.I)
_LABEL_ENDING = re.compile(r"[_-](labels?|masks?|seg|segmentation|instances?|gt)$", re.I)
# nnU-Net's channel number.
_CHANNEL = re.compile(r"_0000$")
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# As BIDS names the folders and files of a subject.
_SUBJECT = r"(sub-[A-Za-z0-9]+)"


def is_label(path: Path) -> bool:
    """Whether a path below the source names a label: by a folder, or by how the name ends."""
    folders = path.parts[:-1]
    return any(map(_LABEL_FOLDER.search, folders)) or bool(_LABEL_ENDING.search(stem(path)))


def match_key(path: Path) -> tuple[str, ...]:
    """Equal for an image and its label: the path without what tells the two apart."""
    folders = [_IMAGE_FOLDER.sub("", _LABEL_FOLDER.sub("", part)) for part in path.parts[:-1]]
    name = _CHANNEL.sub("", _LABEL_ENDING.sub("", stem(path)))
    return (*(folder.lower() for folder in folders if folder), name)


def labels_by_key(paths: Iterable[Path], root: Path) -> dict[tuple[str, ...], Path]:
    """Label files by their `match_key` below `root`."""
    return {match_key(path.relative_to(root)): path for path in paths}


def split_of(name: str) -> str | None:
    """`"train"`, `"val"` or `"test"` where a name says so: `instances_val2017` is val."""
    words = re.findall(r"[a-z]+", name.lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def patient_of(path: Path, pattern: str | None) -> str | None:
    """What the pattern finds in a path below the source: its first group, or all of the match."""
    found = re.search(pattern or _SUBJECT, path.as_posix())
    return found and (found[1] if found.re.groups else found[0])
