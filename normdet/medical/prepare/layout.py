"""Read from the names of folders and files an image's label, patient and split."""

import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from normdet.data.image_file import SUFFIXES
from normdet.files.faults import Report
from normdet.files.words import first_of
from normdet.medical.readers.find import stem

_LABEL_FOLDER = re.compile(
    r"(labels?|masks?|annotations?|segmentations?|segmentation(object|class)(png)?|instances?"
    r"|segmented|label_?images?|(instance|semantic|class)_masks?|ground_?truths?|_?(gt|st))(?=tr$|ts$|$)|^seg$",
    re.I,
)
_IMAGE_FOLDER = re.compile(r"(jpegimages|images?|imgs?|scans?|^data)(?=tr$|ts$|$)", re.I)
# Cellpose writes `_cp_masks`, QuPath's scripts `-labelled`, ilastik `_Simple Segmentation`.
_LABEL_WORDS = (
    r"((cp_)?masks?|labels?|labell?ed|seg|segmentations?|instances?|gt|ground_?truth"
    r"|(simple|multicut|predicted)[ _]segmentation|object[ _](identities|predictions))"
)
_LABEL_ENDING = re.compile(rf"(^|[_ -]){_LABEL_WORDS}$", re.I)
# By-products that Cellpose and ilastik write beside images, and labels of tracks: neither images
# nor labels of one image.
_ASIDE = re.compile(
    r"^man_track\d+$|[_-](cp_)?(outlines?|flows?|styles?|cellprob|probabilities|uncertainty|features)"
    r"(_cp_masks)?$",
    re.I,
)
# Pictures of labels that labelme writes for people to look at.
_SHOWN_FOLDER = re.compile(r"^segmentation(object|class)(visualization|viz|npy)$", re.I)
# Of two labels of one image the better by its folder or name: instances before classes, what was
# exported before what a tool keeps for itself.
_BETTER = (re.compile(r"(^|/)segmentationobject(png)?/", re.I), re.compile(r"(?<!_seg\.npy)$"))
# The Cell Tracking Challenge has `man_seg007` in `01_GT/SEG` for `t007` in `01`.
_LABEL_BEGINNING = re.compile(rf"^({_LABEL_WORDS}[_-]|man_seg_?(?=\d))", re.I)
_IMAGE_WORDS = re.compile(r"^(images?|img)([_-]|$)|[_-](images?|img)$|^t(?=\d{3,4}$)", re.I)
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
# BIDS's names for the folders and files of a subject.
_SUBJECT = r"(sub-[A-Za-z0-9]+)"


def is_label(path: Path) -> bool:
    """Whether a path below the source is a label's, by a folder or by the name's start or end."""
    folders, name = path.parts[:-1], _stem(path)
    if any(map(_LABEL_FOLDER.search, folders)) or _LABEL_ENDING.search(name):
        return True
    # In a folder of images the start of a name may say what the picture shows.
    return bool(_LABEL_BEGINNING.search(name)) and not any(map(_IMAGE_FOLDER.search, folders))


def is_aside(path: Path) -> bool:
    """Whether a name is that of a tool's by-product: outlines, flows, probabilities."""
    return bool(_ASIDE.search(_stem(path)) or _SHOWN_FOLDER.search(path.parent.name))


def match_key(path: Path) -> tuple[str, ...]:
    """A key that an image and its label share: the path without the marks of images and labels."""
    name = _CHANNEL.sub("", _LABEL_ENDING.sub("", _stem(path)))
    return (*_common_folders(path), _IMAGE_WORDS.sub("", _LABEL_BEGINNING.sub("", name)))


def _exact_key(path: Path) -> tuple[str, ...]:
    return (*_common_folders(path), _stem(path))


def _stem(path: Path) -> str:
    """The name without endings, also `.ome`, in one Unicode form, since archives mix two."""
    name = stem(path)
    if name.lower().endswith((".ome", *SUFFIXES)):  # x.jpg.png is the label of x.jpg
        name = name.rpartition(".")[0]
    return unicodedata.normalize("NFC", name)


def _common_folders(path: Path) -> list[str]:
    folders = [_IMAGE_FOLDER.sub("", _LABEL_FOLDER.sub("", part)) for part in path.parts[:-1]]
    return [unicodedata.normalize("NFC", folder).lower() for folder in folders if folder]


def labels_by_key(paths: Iterable[Path], root: Path, report: Report) -> dict[tuple[str, ...], Path]:
    """Label files by their `match_key` below `root`; several with one key are reported."""
    groups = _grouped(paths, root, match_key)
    for files in groups.values():
        if len(files) > 1:
            report(f"{_listed(files)} are labels of one image: none of them is taken")
    return {key: files[0] for key, files in groups.items() if len(files) == 1}


def better(labels: Sequence[Path], place: Path, notes: list[str]) -> list[Path]:
    """Labels without those that another of the same image is better than, which a note tells.

    Args:
        labels: below `place`.
        place: where their names begin.
        notes: gets a sentence.
    """
    kept, left = [], []
    for files in _grouped(labels, place, match_key).values():
        best = _best(files) if len(files) > 1 else None
        kept += [best] if best else files
        left += [path for path in files if best not in (None, path)]
    if left:
        notes.append(
            f"{place}: left out {len(left)} labels beside better ones of the same images (objects "
            f"before classes, exported before saved): {_listed(left)}; name a folder by --labels"
        )
    return kept


def pair(
    images: Iterable[Path], root: Path, labels: Iterable[Path], place: Path, report: Report
) -> dict[Path, Path]:
    """The label of each image that has exactly one, by their names.

    If several images match a label, an identical stem wins: `01_mask` belongs to an image `01_mask`
    even if there is an image `01` too.

    Args:
        images: below `root`.
        root: where the names of images begin.
        labels: below `place`.
        place: where the names of labels begin.
        report: called with a sentence on each image and label without a partner, and on those
            whose names are ambiguous.
    """
    images, labels = list(images), list(labels)
    ours, theirs = _grouped(images, root, match_key), _grouped(labels, place, match_key)
    if images and labels and not ours.keys() & theirs.keys():
        root, place = _below_folders(images, root, labels, place)
    return dict(_pairs(images, root, labels, place, report, match_key))


def _below_folders(
    images: Sequence[Path], root: Path, labels: Sequence[Path], place: Path
) -> tuple[Path, Path]:
    """The folders below which names are alike, where words do not tell, as of raw/ and masks/.

    If both lead through folders of other names, say of two patients, nothing is assumed.
    """
    inner = [Path(os.path.commonpath([path.parent for path in all_])) for all_ in (images, labels)]
    ours, theirs = (
        _common_folders(folder.relative_to(start) / "x")
        for folder, start in zip(inner, (root, place), strict=True)
    )
    shorter, longer = sorted((ours, theirs), key=len)
    if longer[len(longer) - len(shorter) :] != shorter:
        return root, place
    return inner[0], inner[1]


def _pairs(
    images: Iterable[Path],
    root: Path,
    labels: Iterable[Path],
    place: Path,
    report: Report,
    key: Callable[[Path], Hashable],
) -> Iterable[tuple[Path, Path]]:
    ours, theirs = _grouped(images, root, key), _grouped(labels, place, key)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        pictures, files = ours.get(name, []), theirs.get(name, [])
        if not files:
            for picture in pictures:
                report(f"{picture} has no label")
        elif not pictures:
            for file in files:
                report(f"{file} is the label of no image")
        elif len(pictures) == len(files) == 1:
            yield pictures[0], files[0]
        elif len(pictures) == 1:
            report(f"{pictures[0]} has {len(files)} labels, and is left out: {_listed(files)}")
        elif key is match_key:
            yield from _pairs(pictures, root, files, place, report, _exact_key)
        else:
            report(f"{_listed(pictures)} have one label, and are left out: {_listed(files)}")


def _best(files: Sequence[Path]) -> Path | None:
    """The one of several labels that is better than the others, if their names tell."""
    for mark in _BETTER:
        better = [path for path in files if mark.search(path.as_posix())]
        if len(better) == 1:
            return better[0]
    return None


def _grouped(
    paths: Iterable[Path], root: Path, key: Callable[[Path], Hashable]
) -> dict[Hashable, list[Path]]:
    groups: dict[Hashable, list[Path]] = {}
    for path in paths:
        groups.setdefault(key(path.relative_to(root)), []).append(path)
    return groups


def _listed(paths: Iterable[Path]) -> str:
    return first_of(map(str, paths))


def split_of(name: str) -> str | None:
    """The split that a name contains, or None: `instances_val2017` is `"val"`."""
    words = re.findall(r"[a-z]+", name.lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def patient_of(path: Path, pattern: str | None) -> str | None:
    """The pattern's match in a path below the source: its first group, or the whole match."""
    found = re.search(pattern or _SUBJECT, path.as_posix())
    return found and (found[1] if found.re.groups else found[0])
