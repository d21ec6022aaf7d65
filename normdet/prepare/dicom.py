"""DICOM series with DICOM segmentations (through highdicom) or label images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.readers import Report, Slice, dicom
from normdet.data.readers.base import missing_extra
from normdet.data.readers.find import walk
from normdet.errors import NormdetError
from normdet.prepare.labelled import check_fit, image_sources, label_files, label_reader
from normdet.prepare.layout import match_key
from normdet.prepare.masks import Labels, coco_object, components, encode_labels, encode_masks
from normdet.prepare.stack import Stack


def dicom_stacks(
    root: Path, labels: Path | None, rule: Labels, max_pixels: int, report: Report
) -> Iterator[Stack]:
    """Every series that a segmentation refers to, or whose files have label images."""
    segmentations = find_segmentations([root, labels] if labels else [root], report)
    files = label_files(root, labels, report)
    for source in image_sources(root, labels, "dicom", report):
        headers = _headers(source.paths)
        series = next((header.series for header in headers.values()), None)
        fitting = [item for item in segmentations if series in item.series]
        if fitting:
            objects = _Segmented(fitting, headers, rule)
            used = [item.path for item in fitting]
        else:
            objects = _Labelled(source.paths, root, files, rule, max_pixels)
            used = objects.files
            if not used:
                report(f"series {source.name} ({source.paths[0]}) has no segmentation or label")
                continue
        yield Stack(source, objects, source.name, labels=tuple(used))


class Segmentation:
    """A DICOM-SEG file, its frames read slice by slice.

    Args:
        path: the file.

    Raises:
        NormdetError: a file that highdicom does not read.
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
                self.categories = [self._category(number) for number in self.numbers]
            except Exception:
                # Not chained: the cause may quote a tag.
                raise NormdetError(f"{path} is not a segmentation that can be read") from None

    def _category(self, number: int) -> str:
        """The coded property type, such as "Nucleus"; a label in free text may name a patient."""
        description = self._seg.get_segment_description(number)
        return str(description.segmented_property_type.meaning)

    def masks(self, uid: str, frame: int, frames: int) -> np.ndarray:
        """`(H, W, S)` of the S segments in one frame of the image `uid`; empty where it has none.

        Raises:
            NormdetError: where the segmentation does not say which image it belongs to.
        """
        options: dict[str, Any] = {
            "ignore_spatial_locations": True,
            "assert_missing_frames_are_empty": True,
            "rescale_fractional": False,
        }
        with dicom.quiet():
            try:
                if frames > 1:
                    array = self._seg.get_pixels_by_source_frame(uid, [frame + 1], **options)
                else:
                    array = self._seg.get_pixels_by_source_instance([uid], **options)
            except Exception:
                raise NormdetError(
                    f"{self.path} does not tell which of its frames belong to which image"
                ) from None
        return array[0] != 0


def find_segmentations(folders: Sequence[Path], report: Report) -> list[Segmentation]:
    """Every DICOM-SEG below the folders."""
    found = []
    for path in (path for folder in folders for path in walk(folder, report)):
        try:
            if dicom.is_dicom(path) and dicom.read_header(path).modality == "SEG":
                found.append(Segmentation(path))
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
    """From a slice to the objects of its segmentations."""

    def __init__(
        self, segmentations: Sequence[Segmentation], headers: dict[Path, dicom.Header], rule: Labels
    ):
        self._segmentations, self._headers, self._rule = segmentations, headers, rule

    def __call__(self, item: Slice) -> list[dict]:
        header = self._headers[item.source]
        objects = []
        for segmentation in self._segmentations:
            masks = segmentation.masks(header.uid or "", item.frame, header.frames)
            check_fit(masks.shape, item, segmentation.path)
            single = np.asarray(segmentation.numbers)
            for index, category in enumerate(segmentation.categories):
                mask = masks[..., index]
                if not mask.any():
                    continue
                if len(self._rule.classes) == 1:
                    category = self._rule.classes[0]
                if self._rule.are_components(single):
                    rles = list(encode_labels(components(mask)).values())
                else:
                    rles = encode_masks([mask])
                objects += [coco_object(category, rle) for rle in rles]
        return objects


class _Labelled:
    """From a slice to the objects of the label image that shares its file's name."""

    def __init__(
        self,
        paths: Sequence[Path],
        root: Path,
        files: dict[tuple[str, ...], Path],
        rule: Labels,
        max_pixels: int,
    ):
        found = {
            path: files[key]
            for path in paths
            if (key := match_key(path.relative_to(root))) in files
        }
        self.files = list(found.values())
        self._readers = {
            path: label_reader(file, "dicom", rule, "axial", max_pixels)
            for path, file in found.items()
        }

    def __call__(self, item: Slice) -> list[dict]:
        if item.source not in self._readers:
            raise NormdetError(f"{item.source} has no label")
        return self._readers[item.source](item, item.frame)
