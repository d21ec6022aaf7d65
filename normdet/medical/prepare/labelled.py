"""Folders of images, volumes and series whose labels are images or volumes beside them."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from normdet.data import image_file as image_reader
from normdet.data.choice import DEFAULT, Choice
from normdet.data.image_file import TIFF_SUFFIXES, Header
from normdet.data.slices import Slice, Source
from normdet.errors import NormdetError
from normdet.files.faults import Report
from normdet.medical.prepare import cellpose, ilastik
from normdet.medical.prepare.class_table import with_names
from normdet.medical.prepare.formats import refuse
from normdet.medical.prepare.layout import (
    better,
    is_aside,
    is_label,
    labels_by_key,
    match_key,
    pair,
    patient_of,
    split_of,
)
from normdet.medical.prepare.masks import (
    OBJECT,
    Labels,
    as_labels,
    coco_object,
    encode_masks,
    label_values,
    objects_of,
)
from normdet.medical.prepare.stack import Stack
from normdet.medical.readers import find_sources, nifti
from normdet.medical.readers.find import walk

# The value of Pascal VOC's border around objects.
VOID = 255
_VOID_COLOUR = (224 << 16) + (224 << 8) + 192
# JPEG changes pixel values: a label saved as JPEG cannot be read back.
LABEL_SUFFIXES = (
    ".png", ".bmp", *TIFF_SUFFIXES, *nifti.SUFFIXES, cellpose.ENDING, *ilastik.SUFFIXES,
)  # fmt: skip
# Label files that are looked at for background.
_LOOKED_AT = 8
# Readers of label files that hold an array, by the ends of their names.
_ARRAYS = {
    cellpose.ENDING: cellpose.read_masks,
    **dict.fromkeys(ilastik.SUFFIXES, ilastik.read_labels),
}


def find_labels(root: Path, labels: Path | None, report: Report) -> tuple[list[Path], Path]:
    """Every label file, and the folder that their names begin in."""
    place = labels or root
    everything = list(walk(place, report))
    files = [path for path in everything if path.name.lower().endswith(LABEL_SUFFIXES)]
    files = [path for path in files if not is_aside(path)]
    if labels is None:
        files = [path for path in files if _is_label(path, root)]
    return files, place


def _is_label(path: Path, root: Path) -> bool:
    """Whether a file below `root` is a label: by its name, or as `x.tif` beside `x.ome.tif`."""
    beside = any((path.parent / f"{path.stem}.ome{suffix}").exists() for suffix in TIFF_SUFFIXES)
    return is_label(path.relative_to(root)) or (beside and path.suffix.lower() in LABEL_SUFFIXES)


def label_files(root: Path, labels: Path | None, report: Report) -> dict[tuple[str, ...], Path]:
    """Every label by the key that it shares with its image."""
    return labels_by_key(*find_labels(root, labels, report), report)


def image_sources(root: Path, labels: Path | None, kind: str, report: Report) -> list[Source]:
    """The sources of a kind that are not labels."""
    inside = labels and os.path.realpath(labels)
    sources = []
    for source in find_sources(root, report=report):
        path = source.paths[0]
        if kind == "image" and is_aside(path):
            continue
        in_labels = inside and os.path.realpath(path).startswith(inside + os.sep)
        if source.kind == kind and not in_labels:
            if kind == "dicom" or labels or not _is_label(path, root):
                sources.append(source)
    return sources


def image_stacks(
    root: Path,
    labels: Path | None,
    kind: str,
    rule: Labels,
    patient: str | None,
    axis: str,
    max_pixels: int,
    report: Report,
    choice: Choice = DEFAULT,
    notes: list[str] | None = None,
) -> Iterator[Stack]:
    """Images (`kind` `"image"`) or volumes (`"nifti"`), each with its label file."""
    found, place = find_labels(root, labels, report)
    if not found:
        refuse(root)
    rule, named = with_names(rule, root)
    if notes is not None:
        notes += named
    found = better(found, place, [] if notes is None else notes)
    found = [path for path in found if _is_volume(path) == (kind == "nifti")]
    sources = {source.paths[0]: source for source in image_sources(root, labels, kind, report)}
    pairs = pair(sources, root, found, place, report)
    # By headers, before a label of any size is decoded.
    pairs = {
        path: label for path, label in pairs.items() if _fits(label, path, kind, report, choice)
    }
    asked = rule.ignore is not None
    rule = settled(rule, list(pairs.values()), axis, max_pixels, choice)
    if notes is not None and not asked and not rule.ignore:
        notes += _odd_value(list(pairs.values()), axis, max_pixels, choice)
    if notes is not None and _all_object(rule, list(pairs.values()), axis, max_pixels, choice):
        notes.append(
            "no pixel of the label images is 0, so that objects fill them: if a value means the "
            "background, as in ilastik's exports, name it: --background 1"
        )
    for path, label in pairs.items():
        below = path.relative_to(root)
        key = patient_of(below, patient)
        yield Stack(
            sources[path],
            label_reader(label, kind, rule, axis, max_pixels, choice),
            key or str(below),
            top_split(below),
            key is not None,
            labels=(label,),
            reading=str(rule),
        )


def _fits(label: Path, image: Path, kind: str, report: Report, choice: Choice) -> bool:
    """Whether a label is of its image's pages and size, as far as headers tell."""
    try:
        if kind == "nifti":
            nifti.check_same_grid(label, image)
        elif not _array_reader(label):
            header = image_reader.read_header(image, choice=choice)
            check_pages(label, image, header.count, choice)
            check_size(label, image, header, choice)
        return True
    except NormdetError as error:
        report(str(error))
        return False


def _all_object(
    rule: Labels, files: Sequence[Path], axis: str, max_pixels: int, choice: Choice
) -> bool:
    """Whether no pixel is background, as far as the first label files tell."""
    if rule.background:
        return False
    read = False
    for path in files[:_LOOKED_AT]:
        with contextlib.suppress(NormdetError):  # reported when this file is read
            for page in read_labels(path, axis, max_pixels, choice):
                if not page.all():
                    return False
                read = read or page.size > 0
    return read


def _odd_value(files: Sequence[Path], axis: str, max_pixels: int, choice: Choice) -> list[str]:
    """A note on a value far above the others, as that of pixels to ignore often is."""
    met: set[int] = set()
    for path in files[:_LOOKED_AT]:
        with contextlib.suppress(NormdetError):  # reported when this file is read
            for page in read_labels(path, axis, max_pixels, choice):
                met.update(label_values(page).tolist())
    top = max(met, default=0)
    if top not in (VOID, 65535) or len(met) < 2 or sorted(met)[-2] > top // 2:
        return []
    return [
        f"the label value {top} is far above the others: if its pixels are neither object nor "
        f"background, name it: --ignore {top}"
    ]


def settled(
    rule: Labels,
    files: Sequence[Path],
    axis: str,
    max_pixels: int,
    choice: Choice = DEFAULT,
) -> Labels:
    """The rule by which all label files of a source are read; damaged files are ignored here."""

    def values() -> Iterator[np.ndarray]:
        for path in files:
            with contextlib.suppress(NormdetError):  # reported when this file is read
                found = [label_values(page) for page in read_labels(path, axis, max_pixels, choice)]
                yield np.unique(np.concatenate(found)) if found else np.zeros(0, int)

    if rule.ignore is None:
        rule = replace(rule, ignore=_void(files, values))
    return rule.settle(values())


def _void(files: Sequence[Path], values: Callable[[], Iterator[np.ndarray]]) -> tuple[int, ...]:
    """VOC's border: 255 in images with a palette, if other values occur and 254 does not.

    In images of colours it is the colour that VOC's palette has there.
    """
    modes = {image_reader.mode_of(path) for path in files}
    if modes not in ({"P"}, {"RGB"}):
        return ()
    void = VOID if modes == {"P"} else _VOID_COLOUR
    met = {int(value) for found in values() for value in found}
    return (void,) if void in met and void - 1 not in met and len(met) > 1 else ()


def read_labels(
    path: Path, axis: str, max_pixels: int, choice: Choice = DEFAULT
) -> Sequence[np.ndarray]:
    """The pages of a label image, or the slices of a volume along an axis: each `(H, W)`.

    Raises:
        NormdetError: the file is damaged, or its values are not labels.
    """
    if _is_volume(path):
        volume, _ = nifti.load_volume(path, axis=axis, max_pixels=max_pixels, labels=True)
        return as_labels(volume.reshape(len(volume), -1), str(path)).reshape(volume.shape)
    if read_array := _array_reader(path):
        labels = read_array(path, max_pixels)
        pages: Sequence[np.ndarray] = labels if labels.ndim == 3 else [labels]
    else:
        pages = image_reader.read_pages(path, max_pixels=max_pixels, labels=True, choice=choice)
    return [as_labels(page, str(path)) for page in pages]


def _array_reader(path: Path) -> Callable[[Path, int], np.ndarray] | None:
    name = path.name.lower()
    return next((read for ending, read in _ARRAYS.items() if name.endswith(ending)), None)


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(nifti.SUFFIXES)


def top_split(below: Path) -> str | None:
    """The split that the top folder names; nnU-Net's Tr and Ts count."""
    if len(below.parts) < 2:
        return None
    top = below.parts[0]
    return split_of(top) or {"Tr": "train", "Ts": "test"}.get(top[-2:])


class label_reader:
    """Maps a slice to the objects of its label. Reads a label file once, when first needed.

    Args:
        path: an image, a stack, or a volume.
        kind: of the labelled source.
        rule: the settled rule for reading values.
        axis: of a volume.
        max_pixels: the largest image that is read.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        rule: Labels,
        axis: str,
        max_pixels: int,
        choice: Choice = DEFAULT,
    ):
        if _is_volume(path) != (kind == "nifti"):
            raise NormdetError(f"{path} cannot be the label of a source of kind {kind}")
        self._path, self._rule, self._axis, self._max = path, rule, axis, max_pixels
        self._choice = choice
        self._pages: Sequence[np.ndarray] | None = None

    def __call__(self, item: Slice, page: int | None = None) -> list[dict]:
        """The objects of `item`, from the page of its own index or from the page given.

        Raises:
            NormdetError: the label is damaged, or of another size.
        """
        if self._pages is None:
            self._pages = read_labels(self._path, self._axis, self._max, self._choice)
        index = item.index if page is None else page
        if index >= len(self._pages):
            raise NormdetError(
                f"{self._path} has {len(self._pages)} slices, {item.source} at least {index + 1}"
            )
        labels = self._pages[index]
        check_fit(labels.shape, item, self._path)
        return objects_of(labels, self._rule)


def check_pages(label: Path, image: Path, count: int, choice: Choice = DEFAULT) -> None:
    """Refuse a label with another number of pages than its image.

    Raises:
        NormdetError: naming both numbers; or the label cannot be read.
    """
    pages = image_reader.read_header(label, labels=True, choice=choice).count
    if pages != count:
        raise NormdetError(f"{label} has {pages} pages, its image {image} {count}")


def check_size(label: Path, image: Path, header: Header, choice: Choice = DEFAULT) -> None:
    """Refuse a label of another size than its image's by their headers.

    Raises:
        NormdetError: naming both sizes.
    """
    own = image_reader.read_header(label, labels=True, choice=choice)
    if (own.height, own.width) != (header.height, header.width):
        raise NormdetError(
            f"{label} has {own.width}x{own.height} pixels, its image {image} "
            f"{header.width}x{header.height}"
        )


def check_fit(shape: tuple[int, ...], item: Slice, label: Path) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        NormdetError: naming both sizes.
    """
    height, width = item.pixels.shape[:2]
    if shape[:2] != (height, width):
        raise NormdetError(
            f"{label} has {shape[1]}x{shape[0]} pixels, its image {item.source} {width}x{height}"
        )


# One mask per instance, as in the Data Science Bowl: ID/images/*.png, ID/masks/*.png -------------


def is_bowl(images: Mapping[Path, Sequence[Path]]) -> bool:
    """Whether each folder `images` holds a single image with masks of its own.

    A folder with several images, or whose image has a mask of the same name, is half of a pair of
    folders that are matched by names. A single image must have the name of its folder; otherwise
    the masks beside it may be those of missing images.

    Args:
        images: by folder, the images in it.
    """
    samples = {place: found for place, found in images.items() if (place.parent / "masks").is_dir()}
    if not samples or any(len(found) > 1 for found in samples.values()):
        return False
    for place, (image,) in samples.items():
        masks = (place.parent / "masks").iterdir()
        if any(match_key(Path(mask.name)) == match_key(Path(image.name)) for mask in masks):
            return False
    ((place, (image,)), *others) = samples.items()
    return bool(others) or place.parent.name == image.stem


def bowl_stacks(
    root: Path, rule: Labels, patient: str | None, max_pixels: int, report: Report
) -> Iterator[Stack]:
    """The images of the folders `images`, each with all masks in the folder `masks` beside it."""
    if len(rule.classes) > 1:
        raise NormdetError("--classes has several names, but masks do not say which is whose")
    folders: dict[Path, list[Source]] = {}
    for source in find_sources(root, report=report):
        place = source.paths[0].parent
        if source.kind == "image" and place.name == "images":
            folders.setdefault(place, []).append(source)
    for place, sources in folders.items():
        masks = place.parent / "masks"
        files = [p for p in walk(masks, report)] if masks.is_dir() else []
        files = [p for p in files if p.name.lower().endswith(LABEL_SUFFIXES)]
        source = sources[0]
        path = source.paths[0]
        if len(sources) > 1:
            report(f"{place} has {len(sources)} images: which of them {masks} is of is not told")
            continue
        if not files:
            report(f"{path} has no mask in {masks}")
            continue
        below = path.relative_to(root)
        key = patient_of(below, patient)
        name = rule.classes[0] if rule.classes else OBJECT
        objects = partial(_bowl_objects, files, name, max_pixels, report)
        group, split = key or str(below.parent.parent), top_split(below)
        yield Stack(source, objects, group, split, bool(key), labels=tuple(files))


def _bowl_objects(
    files: list[Path], name: str, max_pixels: int, report: Report, item: Slice
) -> list[dict]:
    if item.index:
        raise NormdetError(f"{item.source} is a stack: its masks are taken for its first image's")
    objects = []
    for path in files:
        try:
            mask = _read_mask(path, max_pixels)
            check_fit(mask.shape, item, path)
        except NormdetError as error:
            report(str(error))
            continue
        objects += [coco_object(name, rle) for rle in encode_masks([mask])]
    return objects


def _read_mask(path: Path, max_pixels: int) -> np.ndarray:
    pages = image_reader.read_pages(path, max_pixels=max_pixels, labels=True)
    if len(pages) > 1:
        raise NormdetError(f"{path} has {len(pages)} pages: a mask has one")
    mask = pages[0].any(-1) if pages[0].ndim == 3 else pages[0] != 0
    if not mask.any():
        raise NormdetError(f"{path} is an empty mask")
    return mask
