"""Folders of images, volumes and series whose labels are images or volumes beside them."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from normdet.data.readers import Report, Slice, Source, find_sources, nifti
from normdet.data.readers import image as image_reader
from normdet.data.readers.find import walk
from normdet.errors import NormdetError
from normdet.prepare.layout import is_label, labels_by_key, match_key, patient_of, split_of
from normdet.prepare.masks import (
    OBJECT,
    Labels,
    as_labels,
    coco_object,
    encode_masks,
    label_values,
    objects_of,
)
from normdet.prepare.stack import Stack

# JPEG changes values: a label saved so has lost what it said.
LABEL_SUFFIXES = (".png", ".bmp", *image_reader.TIFF_SUFFIXES, *nifti.SUFFIXES)


def label_files(root: Path, labels: Path | None, report: Report) -> dict[tuple[str, ...], Path]:
    """Every label by the key it shares with its image."""
    place = labels or root
    files = [path for path in walk(place, report) if path.name.lower().endswith(LABEL_SUFFIXES)]
    if labels is None:
        files = [path for path in files if is_label(path.relative_to(root))]
    return labels_by_key(files, place)


def image_sources(root: Path, labels: Path | None, kind: str, report: Report) -> list[Source]:
    """The sources of a kind that are no labels."""
    inside = labels and os.path.realpath(labels)
    sources = []
    for source in find_sources(root, report=report):
        path = source.paths[0]
        in_labels = inside and os.path.realpath(path).startswith(inside + os.sep)
        if source.kind == kind and not in_labels:
            if kind == "dicom" or labels or not is_label(path.relative_to(root)):
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
) -> Iterator[Stack]:
    """Images (`kind` `"image"`) or volumes (`"nifti"`), each with its label file."""
    files = label_files(root, labels, report)
    for source in image_sources(root, labels, kind, report):
        below = source.paths[0].relative_to(root)
        label = files.get(match_key(below))
        if label is None:
            report(f"{source.paths[0]} has no label")
            continue
        key = patient_of(below, patient)
        try:
            objects = label_reader(label, kind, rule, axis, max_pixels)
            if kind == "nifti":
                nifti.check_same_grid(label, source.paths[0])
            else:
                check_pages(label, source.paths[0], image_reader.page_count(source.paths[0]))
        except NormdetError as error:
            report(str(error))
            continue
        split = top_split(below)
        yield Stack(source, objects, key or str(below), split, key is not None, labels=(label,))


def top_split(below: Path) -> str | None:
    """The split that the uppermost folder names; nnU-Net's Tr and Ts count."""
    if len(below.parts) < 2:
        return None
    top = below.parts[0]
    return split_of(top) or {"Tr": "train", "Ts": "test"}.get(top[-2:])


class label_reader:
    """From a slice to the objects of its label; a label file is read once, when first asked for.

    Args:
        path: an image, a stack, or a volume.
        kind: that of the labelled source.
        rule: how values are read.
        axis: of a volume.
        max_pixels: the largest image that is read.
    """

    def __init__(self, path: Path, kind: str, rule: Labels, axis: str, max_pixels: int):
        is_volume = path.name.lower().endswith(nifti.SUFFIXES)
        if is_volume != (kind == "nifti"):
            raise NormdetError(f"{path} cannot be the label of a source of kind {kind}")
        self._path, self._rule, self._axis, self._max = path, rule, axis, max_pixels
        self._is_volume = is_volume
        self._pages: list[np.ndarray] | np.ndarray | None = None

    def _read(self) -> None:
        if self._is_volume:
            volume, _ = nifti.load_volume(self._path, axis=self._axis, max_pixels=self._max)
            self._pages = as_labels(volume.reshape(len(volume), -1), str(self._path)).reshape(
                volume.shape
            )
        else:
            pages = image_reader.read_pages(self._path, max_pixels=self._max, indices=True)
            self._pages = [as_labels(page, str(self._path)) for page in pages]
        found = [label_values(page) for page in self._pages]
        self._values = np.unique(np.concatenate(found)) if found else np.zeros(0, int)

    def __call__(self, item: Slice, page: int | None = None) -> list[dict]:
        """The objects of `item`, from the page of its own index or the one given.

        Raises:
            NormdetError: a label that is damaged, or of another size.
        """
        if self._pages is None:
            self._read()
        index = item.index if page is None else page
        if index >= len(self._pages):
            raise NormdetError(
                f"{self._path} has {len(self._pages)} slices, {item.source} at least {index + 1}"
            )
        labels = self._pages[index]
        check_fit(labels.shape, item, self._path)
        return objects_of(labels, self._rule, self._values)


def check_pages(label: Path, image: Path, count: int) -> None:
    """Refuse a label that has another number of pages than its image.

    Raises:
        NormdetError: naming both numbers; or a label that cannot be read.
    """
    pages = image_reader.page_count(label)
    if pages != count:
        raise NormdetError(f"{label} has {pages} pages, its image {image} {count}")


def check_fit(shape: tuple[int, ...], item: Slice, label: Path) -> None:
    """Refuse a mask that is not of its image's size.

    Raises:
        NormdetError: naming both sizes.
    """
    height, width = item.pixels.shape[:2]
    if shape[:2] != (height, width):
        raise NormdetError(
            f"{label} has {shape[1]}x{shape[0]} pixels, its image {item.source} {width}x{height}"
        )


# One mask per instance, as in the Data Science Bowl: ID/images/*.png, ID/masks/*.png -------------


def bowl_stacks(
    root: Path, rule: Labels, patient: str | None, max_pixels: int, report: Report
) -> Iterator[Stack]:
    """The images of folders `images`, each with all masks of the folder `masks` beside it."""
    for source in find_sources(root, report=report):
        path = source.paths[0]
        if source.kind != "image" or path.parent.name != "images":
            continue
        masks = path.parent.parent / "masks"
        files = [p for p in walk(masks, report)] if masks.is_dir() else []
        files = [p for p in files if p.name.lower().endswith(LABEL_SUFFIXES)]
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
    objects = []
    for path in files:
        try:
            pixels = image_reader.read_pages(path, max_pixels=max_pixels)[0]
            check_fit(pixels.shape, item, path)
        except NormdetError as error:
            report(str(error))
            continue
        mask = pixels.any(-1) if pixels.ndim == 3 else pixels != 0
        if not mask.any():
            report(f"{path} is an empty mask")
            continue
        objects += [coco_object(name, rle) for rle in encode_masks([mask])]
    return objects
