"""DICOM through pydicom: single files, multi-frame files and series.

No value of a tag reaches a name, a message or a log: what pydicom and its errors might quote is
kept from both.
"""

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.slices import Slice, Source, check_size, native, patient_key
from normdet.errors import NormdetError
from normdet.files.faults import Report, missing_extra, unreadable

SUFFIXES = (".dcm", ".dicom", ".ima")
# The tags that sorting, grouping and checking need; others are not parsed.
_HEADER = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Modality Rows Columns "
    "NumberOfFrames ImageOrientationPatient ImagePositionPatient InstanceNumber"
).split()
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# A step this much above the usual one is a hole in the series.
_GAP = 1.5
# Places of missing slices that a message names.
_SHOWN = 8
# No scanner is this wide: positions beyond it are damaged, and would overflow later.
_FARTHEST_MM = 1e6


@dataclass(frozen=True)
class Header:
    """What is known of a file before its pixels are read; None where a tag is missing."""

    path: Path
    uid: str | None
    series: str | None
    modality: str | None
    frames: int
    has_image: bool
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    number: int | None


def is_dicom(path: Path) -> bool:
    """Whether a file has a name or a mark of DICOM.

    Raises:
        NormdetError: a file that cannot be opened.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise unreadable(path, error) from error


def read_header(path: Path) -> Header:
    """The tags that place a file in its series.

    Raises:
        NormdetError: a file that is not DICOM.
    """
    with _open(path, pixels=False) as data:
        return Header(
            path,
            _text(data, "SOPInstanceUID"),
            _text(data, "SeriesInstanceUID"),
            _text(data, "Modality"),
            _integer(data, "NumberOfFrames") or 1,
            bool(_value(data, "Rows")),
            _numbers(data, "ImagePositionPatient", 3),
            _numbers(data, "ImageOrientationPatient", 6),
            _integer(data, "InstanceNumber"),
        )


def read_patient(path: Path) -> str | None:
    """The key that :func:`read` gives the patient of a file's images.

    Raises:
        NormdetError: a file that is not DICOM.
    """
    with _open(path, pixels=False) as data:
        return _patient(data)


def read(source: Source, *, max_pixels: int, report: Report) -> Iterator[Slice]:
    """The images of a series in the order of space, or the frames of a file."""
    headers = []
    for path in source.paths:
        try:
            headers.append(read_header(path))
        except NormdetError as error:
            report(str(error))
    index = 0
    ordered, step = in_order(headers, source.name, report)
    for header in ordered:
        try:
            for frame, pixels, patient, spacing, window in _frames(header.path, max_pixels, report):
                if spacing and step:
                    spacing = (*spacing[:2], step)
                name = source.name
                if len(headers) > 1 or header.frames > 1:
                    name = f"{name}_{index:04d}"
                yield Slice(pixels, name, patient, spacing, window, header.path, index, frame)
                index += 1
        except NormdetError as error:
            report(str(error))
            index += header.frames


def in_order(
    headers: Sequence[Header], name: str, report: Report
) -> tuple[list[Header], float | None]:
    """Sort by position along the normal of the slices, and report what is missing between them.

    Without positions the instance number decides, then the file's name.

    Returns:
        The sorted headers and the usual step between two, in mm, or None.
    """
    if not all(header.position and header.orientation for header in headers):
        return sorted(headers, key=lambda h: (h.number is None, h.number, h.path)), None
    groups: dict[tuple[float, ...], list[tuple[float, Header]]] = {}
    for header in headers:
        facing = tuple(np.round(header.orientation, 2).tolist())
        row, column = np.reshape(header.orientation, (2, 3))
        place = float(np.dot(np.cross(row, column), header.position))
        groups.setdefault(facing, []).append((place, header))
    ordered, usual = [], None
    for facing in sorted(groups):
        group = sorted(groups[facing], key=lambda item: (item[0], item[1].path))
        usual = _report_gaps([place for place, _ in group], name, report)
        ordered += [header for _, header in group]
    return ordered, usual


def _report_gaps(places: Sequence[float], name: str, report: Report) -> float | None:
    steps = np.diff(places)
    steps_up = steps[steps > 1e-3]
    if not len(steps_up):
        return None
    usual = float(np.median(steps_up))
    missing = (
        f"{place + usual * index:.1f}"
        for place, gap in zip(places, steps, strict=False)
        if gap > _GAP * usual
        for index in range(1, round(gap / usual))
    )
    # One wrong position would make a list of millions.
    if first := list(itertools.islice(missing, _SHOWN + 1)):
        shown = ", ".join(first[:_SHOWN]) + (", ..." if len(first) > _SHOWN else "")
        report(
            f"series {name} has gaps: no slice at {shown} mm along its normal "
            f"({len(places)} slices, one each {usual:.2f} mm)"
        )
    return usual


def _frames(
    path: Path, max_pixels: int, report: Report
) -> Iterator[tuple[int, np.ndarray, str | None, tuple | None, tuple | None]]:
    """Of each frame its number, pixels, patient, spacing and window."""
    with _open(path, pixels=True) as data:
        frames = _integer(data, "NumberOfFrames") or 1
        rows, columns = _integer(data, "Rows") or 0, _integer(data, "Columns") or 0
        check_size(path, rows, columns, max_pixels, frames)
        _check_length(data, frames, path)
        patient = _patient(data)
        for index in _frame_order(data, frames, path, report):
            try:
                groups = _functional_groups(data, index)
                pixels, window = _pixels(data, index, groups)
            except Exception as error:  # a damaged stream raises nearly anything
                report(f"{path}{f', frame {index},' if frames > 1 else ''} {_reason(error)}")
                continue
            spacing = _spacing(data, groups)
            yield index, pixels, patient, spacing, window


def _check_length(data: Any, frames: int, path: Path) -> None:
    """Refuse more frames than there are pixels for, before any work per frame.

    Raises:
        NormdetError: naming what they need and what there is.
    """
    from pydicom.encaps import parse_fragments
    from pydicom.pixels.utils import get_expected_length

    try:
        if data.file_meta.TransferSyntaxUID.is_compressed:
            # The first item is the table of where the others are.
            unit, needed, there = "fragments", frames, parse_fragments(data.PixelData)[0] - 1
        else:
            unit, needed = "bytes", get_expected_length(data)
            there = max(len(data.get(name) or b"") for name in _PIXELS)
    except Exception as error:  # a damaged header raises nearly anything
        raise NormdetError(f"{path} {_reason(error)}") from None
    if frames < 1 or there < needed:
        raise NormdetError(
            f"{path} has pixels that cannot be read: for {frames} frames at least {needed} {unit} "
            f"are needed, and there are {there}"
        )


def _patient(data: Any) -> str | None:
    identity = _text(data, "PatientID") or _text(data, "StudyInstanceUID")
    return patient_key(identity) if identity else None


def _frame_order(data: Any, frames: int, path: Path, report: Report) -> list[int]:
    """The frames in the order of space where each states its own place."""
    headers = []
    for index in range(frames if "PerFrameFunctionalGroupsSequence" in data else 0):
        try:
            groups = _functional_groups(data, index)
        except Exception:  # named when the frame is read
            return list(range(frames))
        position = _first_numbers(groups, "ImagePositionPatient", 3)
        orientation = _first_numbers(groups, "ImageOrientationPatient", 6)
        if position is None or orientation is None:
            return list(range(frames))
        headers.append(Header(path, None, None, None, 1, True, position, orientation, index))
    ordered, _ = in_order(headers, path.name, report)
    return [header.number for header in ordered] or list(range(frames))


def _functional_groups(data: Any, index: int) -> list[Any]:
    """Where a frame's attributes stand, most specific first."""
    places = []
    per_frame = data.get("PerFrameFunctionalGroupsSequence")
    if per_frame and index < len(per_frame):
        places += [item for element in per_frame[index] if element.VR == "SQ" for item in element]
    shared = data.get("SharedFunctionalGroupsSequence")
    if shared:
        places += [item for element in shared[0] if element.VR == "SQ" for item in element]
    return [*places, data]


def _pixels(
    data: Any, index: int, groups: list[Any]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    from pydicom import pixels as decode

    array = decode.pixel_array(data, index=index)
    photometric = str(data.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        array = decode.apply_color_lut(array, data)
    if array.ndim == 3:
        return native(array[..., :3]), None
    slope = float(_first(groups, "RescaleSlope") or 1)
    intercept = float(_first(groups, "RescaleIntercept") or 0)
    if not np.isfinite((slope, intercept)).all():
        raise ValueError
    window = _window(groups)
    mirror = None
    if photometric == "MONOCHROME1":
        # Larger values are darker: mirror them within the range of the bits.
        bits = int(data.get("BitsStored", 8 * array.dtype.itemsize))
        mirror = -1 if data.get("PixelRepresentation", 0) else (1 << bits) - 1
        array = (mirror - array.astype(np.int64)).astype(array.dtype)
    if data.get("ModalityLUTSequence"):
        array = decode.apply_modality_lut(array, data)
    elif (slope, intercept) != (1, 0):
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if mirror is not None and window:
        window = slope * mirror + 2 * intercept - window[0], window[1]
    return native(array), window


def _window(groups: list[Any]) -> tuple[float, float] | None:
    center, width = (_first(groups, f"Window{name}") for name in ("Center", "Width"))
    if center is None or width is None:
        return None
    # Several windows may be offered: the first is the default.
    center, width = (
        float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
        for value in (center, width)
    )
    return (center, width) if width > 0 and np.isfinite((center, width)).all() else None


def _spacing(data: Any, groups: list[Any]) -> tuple[float, ...] | None:
    spacing = _lengths(groups, "PixelSpacing", 2) or _lengths([data], "ImagerPixelSpacing", 2)
    return spacing and spacing + (_lengths(groups, "SpacingBetweenSlices", 1) or ())


def _lengths(places: list[Any], name: str, count: int) -> tuple[float, ...] | None:
    """The first that is possible: lengths are above 0."""
    found = (_numbers(place, name, count) for place in places)
    return next((values for values in found if values and min(values) > 0), None)


def _first_numbers(places: list[Any], name: str, count: int) -> tuple[float, ...] | None:
    return next(filter(None, (_numbers(place, name, count) for place in places)), None)


def _first(groups: list[Any], name: str) -> Any:
    for place in groups:
        value = place.get(name)
        if value is not None and value != "":
            return value
    return None


@contextlib.contextmanager
def _open(path: Path, pixels: bool) -> Iterator[Any]:
    """A data set, read while pydicom's messages about its tags are silenced."""
    try:
        import pydicom
    except ImportError as error:
        raise missing_extra("pydicom") from error
    with quiet():
        try:
            options = {} if pixels else {"stop_before_pixels": True, "specific_tags": _HEADER}
            # Some scanners leave the preamble out.
            forced = path.suffix.lower() in SUFFIXES
            data = pydicom.dcmread(path, force=forced, **options)
            if not len(data) and not data.get("file_meta"):
                raise ValueError
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                raise unreadable(path, error) from None
            # Not chained: the cause may quote a tag, and a traceback would print it.
            raise NormdetError(f"{path} is not a DICOM file that can be read") from None
        yield data


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps pydicom and highdicom from logging or warning what may quote a tag."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Why pixels could not be read, in words that cannot come from a tag."""
    if "missing dependencies" in str(error):
        return (
            "is compressed in a way that no installed decoder reads: "
            "pip install normdet[medical], or pylibjpeg with its plugins"
        )
    return f"has pixels that cannot be read: {type(error).__name__}"


def _value(data: Any, name: str) -> Any:
    try:
        value = data.get(name)
    except Exception:  # a value that does not parse is a value that is not there
        return None
    return None if value is None or value == "" else value


def _text(data: Any, name: str) -> str | None:
    value = _value(data, name)
    return None if value is None else str(value)


def _integer(data: Any, name: str) -> int | None:
    try:
        return int(_value(data, name))
    except (TypeError, ValueError, OverflowError):
        return None


def _numbers(data: Any, name: str, count: int) -> tuple[float, ...] | None:
    try:
        value = _value(data, name)
        values = tuple(map(float, np.atleast_1d(() if value is None else value)))
    except (TypeError, ValueError):
        return None
    fits = len(values) == count and all(abs(value) < _FARTHEST_MM for value in values)
    return values if fits else None
