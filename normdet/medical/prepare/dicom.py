"""DICOM series with DICOM segmentations (through highdicom) or label images."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.slices import Slice
from normdet.errors import NormdetError
from normdet.files.faults import Report, missing_extra
from normdet.medical.prepare.labelled import (
    check_fit,
    check_pages,
    image_sources,
    label_files,
    label_reader,
    settled,
)
from normdet.medical.prepare.layout import match_key, patient_of
from normdet.medical.prepare.masks import (
    Labels,
    coco_object,
    components,
    encode_labels,
    encode_masks,
)
from normdet.medical.prepare.stack import Stack
from normdet.medical.readers import dicom
from normdet.medical.readers.find import each_file

# The most mask pixels in memory; a slice of cells may have thousands of segments.
BLOCK = 1 << 26


def dicom_stacks(
    root: Path,
    labels: Path | None,
    rule: Labels,
    patient: str | None,
    max_pixels: int,
    report: Report,
) -> Iterator[Stack]:
    """Every series that a segmentation refers to, or whose files have label images.

    Images are grouped by what the pattern `patient` finds in their paths or, if it finds nothing,
    by the patient whom their files name.
    """
    segmentations = find_segmentations([root, labels] if labels else [root], report)
    files = label_files(root, labels, report)
    by_label = settled(rule, list(files.values()), "axial", max_pixels)
    by_segment = rule.settle(np.asarray(numbers) for _, numbers in segmentations.values())
    for source in image_sources(root, labels, "dicom", report):
        headers = _headers(source.paths)
        series = next((header.series for header in headers.values()), None)
        used = [path for path, (referred, _) in segmentations.items() if series in referred]
        rule = by_segment if used else by_label
        try:
            key = patient and _patient_of_all(source.paths, root, patient)
        except NormdetError as error:
            report(str(error))
            continue
        if used:
            objects = _Segmented(used, headers, rule)
        else:
            objects = _Labelled(headers, root, files, rule, max_pixels, report)
            used = objects.files
            if not used:
                report(f"series {source.name} ({source.paths[0]}) has no segmentation or label")
                continue
        group = key or source.name
        yield Stack(
            source, objects, group, patient=bool(key), labels=tuple(used), reading=str(rule)
        )


def _patient_of_all(paths: Sequence[Path], root: Path, pattern: str) -> str | None:
    """The text that the pattern finds in the paths of a series.

    Raises:
        NormdetError: it finds several patients.
    """
    found = {path: patient_of(path.relative_to(root), pattern) for path in paths}
    named = {name: path for path, name in found.items() if name}
    if len(named) > 1:
        first, second, *_ = named.values()
        raise NormdetError(f"{first} and {second} are of one series, of two patients by --patient")
    return next(iter(named), None)


class Segmentation:
    """A DICOM-SEG file in memory; its masks are made slice by slice.

    Args:
        path: the file.

    Raises:
        NormdetError: highdicom does not read the file.
    """

    def __init__(self, path: Path):
        try:
            from highdicom.seg import segread
        except ImportError as error:
            raise missing_extra("highdicom") from error
        self.path = path
        with dicom.quiet():
            try:
                self._seg = segread(path)
                references = self._seg.get("ReferencedSeriesSequence") or ()
                self.series = {str(item.SeriesInstanceUID) for item in references}
                self.numbers = [int(number) for number in self._seg.segment_numbers]
                self._categories = {number: self._category(number) for number in self.numbers}
                self._shape = int(self._seg.Rows), int(self._seg.Columns)
                # A binary segmentation lacks this tag; its values are 0 and 1.
                self._most = int(self._seg.get("MaximumFractionalValue") or 1)
            except Exception:
                # Do not chain: the message of the cause may quote a tag.
                raise NormdetError(f"{path} is not a segmentation that can be read") from None

    def _category(self, number: int) -> str:
        """The coded property type, such as "Nucleus". Free-text labels may name a patient."""
        description = self._seg.get_segment_description(number)
        return str(description.segmented_property_type.meaning)

    def masks(self, item: Slice, header: dicom.Header) -> Iterator[tuple[str, np.ndarray]]:
        """Category and mask `(H, W)`, bool, of every segment in a slice.

        In a fractional segmentation, values are probabilities or shares of the pixel. A pixel
        belongs to a segment if its value is at least half of the largest possible one.

        Raises:
            NormdetError: the segmentation is of another size than the slice, or does not say which
                image it belongs to.
        """
        check_fit(self._shape, item, self.path)
        step = max(1, BLOCK // max(1, self._shape[0] * self._shape[1]))
        for start in range(0, len(self.numbers), step):
            numbers = self.numbers[start : start + step]
            values = self.values(item.frame, header, numbers)
            for number, value in zip(numbers, np.moveaxis(values, -1, 0), strict=True):
                mask = value >= self._most / 2
                if mask.any():
                    yield self._categories[number], mask

    def values(self, frame: int, header: dicom.Header, numbers: Sequence[int]) -> np.ndarray:
        """Values `(H, W, S)` of S segments in one frame of an image; 0 outside of segments."""
        options: dict[str, Any] = {
            "segment_numbers": numbers,
            "ignore_spatial_locations": True,
            "assert_missing_frames_are_empty": True,
            "rescale_fractional": False,
        }
        uid = header.uid or ""
        with dicom.quiet():
            try:
                if header.frames > 1:
                    array = self._seg.get_pixels_by_source_frame(uid, [frame + 1], **options)
                else:
                    array = self._seg.get_pixels_by_source_instance([uid], **options)
            except Exception:
                raise NormdetError(
                    f"{self.path} does not tell which of its frames belong to which image"
                ) from None
        return array[0]


def find_segmentations(
    folders: Sequence[Path], report: Report
) -> dict[Path, tuple[set[str], list[int]]]:
    """Every DICOM-SEG below the folders, with the series it refers to and its segment numbers.

    Each is read once to check that it can be read, and released, since all may not fit into memory.
    """
    found = {}
    for path, _ in each_file(folders, report):
        try:
            if dicom.is_dicom(path) and dicom.read_header(path).modality == "SEG":
                segmentation = Segmentation(path)
                found[path] = segmentation.series, segmentation.numbers
        except NormdetError as error:
            report(str(error))
    return found


def _headers(paths: Sequence[Path]) -> dict[Path, dicom.Header]:
    headers = {}
    for path in paths:
        try:
            headers[path] = dicom.read_header(path)
        except NormdetError:
            pass  # named when the series is read
    return headers


class _Segmented:
    """Maps a slice to the objects of its segmentations, which are read when first needed."""

    def __init__(self, paths: Sequence[Path], headers: dict[Path, dicom.Header], rule: Labels):
        self._paths, self._headers, self._rule = paths, headers, rule

    @cached_property
    def _segmentations(self) -> list[Segmentation]:
        return [Segmentation(path) for path in self._paths]

    def __call__(self, item: Slice) -> list[dict]:
        objects = []
        for segmentation in self._segmentations:
            for category, mask in segmentation.masks(item, self._headers[item.source]):
                if len(self._rule.classes) == 1:
                    category = self._rule.classes[0]
                if self._rule.instances == "components":
                    rles = list(encode_labels(components(mask)).values())
                else:
                    rles = encode_masks([mask])
                objects += [coco_object(category, rle) for rle in rles]
        return objects


class _Labelled:
    """Maps a slice to the objects of the label image with its file's name."""

    def __init__(
        self,
        headers: dict[Path, dicom.Header],
        root: Path,
        files: dict[tuple[str, ...], Path],
        rule: Labels,
        max_pixels: int,
        report: Report,
    ):
        self.files: list[Path] = []
        self._readers: dict[Path, label_reader] = {}
        for path, header in headers.items():
            label = files.get(match_key(path.relative_to(root)))
            if label is None:
                continue
            try:
                check_pages(label, path, header.frames)
                self._readers[path] = label_reader(label, "dicom", rule, "axial", max_pixels)
                self.files.append(label)
            except NormdetError as error:
                report(str(error))

    def __call__(self, item: Slice) -> list[dict]:
        if item.source not in self._readers:
            raise NormdetError(f"{item.source} has no label")
        return self._readers[item.source](item, item.frame)
