"""DICOM through pydicom: single files, multi-frame files and series.

No value of a tag reaches a name, a message or a log. Messages of pydicom, which may quote values,
are suppressed.
"""

import contextlib
import itertools
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.slices import Slice, Source, check_growth, check_size, native, patient_key
from normdet.errors import NormdetError
from normdet.files.faults import Report, missing_extra, unreadable
from normdet.files.read import check_regular

logger = logging.getLogger(__name__)

SUFFIXES = (".dcm", ".dicom", ".ima")
# The tags that sorting, grouping and checking need; others are not parsed.
_HEADER = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Modality Rows Columns "
    "NumberOfFrames ImageOrientationPatient ImagePositionPatient SliceLocation InstanceNumber"
).split()
# Tags that distinguish images at one place, the most reliable first, and their names in frames.
_TRAITS = (
    "AcquisitionNumber FrameAcquisitionNumber TemporalPositionIdentifier TemporalPositionIndex "
    "StackID EchoNumbers EchoTime EffectiveEchoTime DiffusionBValue FrameType ImageType"
).split()
_TIMES = ("TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime")
# Tags that describe the pixels, and their defaults.
_WHOLE = (
    "NumberOfFrames", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PlanarConfiguration",
)  # fmt: skip
_DEFAULTS = {
    "SamplesPerPixel": lambda data: 1,
    "PhotometricInterpretation": lambda data: "MONOCHROME2" if data.SamplesPerPixel == 1 else "RGB",
    "PixelRepresentation": lambda data: 0,
    "BitsStored": lambda data: data.BitsAllocated,
    "HighBit": lambda data: data.BitsStored - 1,
    "PlanarConfiguration": lambda data: 0,
}
_TAGS = [*_HEADER, *_TRAITS, *_TIMES]
# The transfer syntax for each marker that a JPEG frame can begin with.
_JPEG = {
    0xC0: "1.2.840.10008.1.2.4.50",
    0xC1: "1.2.840.10008.1.2.4.51",
    0xC3: "1.2.840.10008.1.2.4.70",
    0xF7: "1.2.840.10008.1.2.4.80",
}
_JPEG_2000 = "1.2.840.10008.1.2.4.90"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Slices closer than this share a place; orientations that differ by less are equal.
_SAME_MM, _SAME_FACING = 1e-3, 0.02
# A step this much above the usual one is a hole in the series.
_GAP = 1.5
# The most places of missing slices that a message names.
_SHOWN = 8
# The transfer syntax of deflated files, and the longest first group of a file, which states it.
_DEFLATED, _META, _BLOCK = b"1.2.840.10008.1.2.1.99", 4096, 1 << 20
# No scanner is this wide. Positions beyond it are damaged, and would overflow later.
_FARTHEST_MM = 1e6


@dataclass(frozen=True)
class Header:
    """The tags of a file, read before its pixels; a missing tag is None."""

    path: Path
    uid: str | None
    series: str | None
    modality: str | None
    frames: int
    has_image: bool
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    number: int | None
    location: float | None = None
    traits: tuple[str | None, ...] = (None,) * (len(_TRAITS) + 2)
    times: tuple[float | None, ...] = (None,) * len(_TIMES)


@dataclass(frozen=True)
class Run:
    """Slices that belong together, in their order.

    Attributes:
        headers: one of each slice.
        step: the usual mm between two, or None.
    """

    headers: list[Header]
    step: float | None


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's ending or its mark.

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
            (_numbers(data, "SliceLocation", 1) or (None,))[0],
            tuple(_trait(_value(data, name)) for name in (*_TRAITS, "Rows", "Columns")),
            tuple(_time(_value(data, name)) for name in _TIMES),
        )


def read_patient(path: Path) -> str | None:
    """The key of the patient of a file's images, as :func:`read` gives it.

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
    index = stack = 0
    runs = in_order(headers, source.name, report)
    alone = len(runs) == 1
    for run in runs:
        for header in run.headers:
            try:
                for one in _frames(header.path, max_pixels, report):
                    spacing = one.spacing
                    if spacing and run.step:
                        spacing = (*spacing[:2], run.step)
                    name = source.name if alone else f"{source.name}_{stack + 1:02d}"
                    if len(headers) > 1 or header.frames > 1:
                        name = f"{name}_{index:04d}"
                    yield Slice(
                        one.pixels,
                        name,
                        one.patient,
                        spacing,
                        one.window,
                        header.path,
                        index,
                        one.number,
                        stack + one.run,
                    )
                    index += 1
            except NormdetError as error:
                report(str(error))
                index += header.frames
        stack += 1


def in_order(headers: Sequence[Header], name: str, report: Report) -> list[Run]:
    """The runs of slices in a series, each sorted by position along its normal.

    A series is one run if its slices face one way and no two share a place. A series that mixes
    acquisitions, echoes, phases or times is split by the tag that distinguishes them. Images that
    no tag distinguishes are reported and left out, so no run has two images at one place.
    Without positions the slice location decides, then the instance number, then the file's name.
    Slices that are missing within a run are reported.
    """
    runs = []
    for group in _alike(_once(headers, name, report)):
        places = [_place(header) for header in group]
        if None in places:
            runs += [Run(part, None) for part in _by_number(group)]
            continue
        parts = _told_apart(group, dict(zip(map(id, group), places, strict=True)))
        if parts is None:
            report(
                f"series {name} has several images at one place that no tag tells apart: "
                f"{len(group)} images are left out"
            )
            continue
        for part in parts:
            part = sorted(part, key=lambda header: (_place(header), header.path))
            step = _report_gaps([_place(header) for header in part], name, report)
            runs.append(Run(part, step))
    return runs


def _once(headers: Sequence[Header], name: str, report: Report) -> list[Header]:
    """The headers without those of repeated images."""
    by_uid: dict[str, Header] = {}
    kept = []
    for header in sorted(headers, key=lambda header: header.path):
        if header.uid and header.uid in by_uid:
            report(f"{header.path} is the same image as {by_uid[header.uid].path}: left out")
            continue
        if header.uid:
            by_uid[header.uid] = header
        kept.append(header)
    return kept


def _alike(headers: Sequence[Header]) -> list[list[Header]]:
    """Headers grouped by orientation; those without geometry form groups of their own."""
    groups: list[list[Header]] = []
    for header in headers:
        for group in groups:
            first = group[0]
            placed = header.orientation is not None and header.position is not None
            if placed != (first.orientation is not None and first.position is not None):
                continue
            close = not placed or np.allclose(
                header.orientation, first.orientation, rtol=0, atol=_SAME_FACING
            )
            if close and _is_scout(header) == _is_scout(first):
                group.append(header)
                break
        else:
            groups.append([header])
    return sorted(groups, key=lambda group: (group[0].orientation or (), -len(group)))


def _is_scout(header: Header) -> bool:
    return "LOCALIZER" in (header.traits[_TRAITS.index("ImageType")] or "")


def _place(header: Header) -> float | None:
    """The position in mm along the slice's normal; without geometry, the slice location."""
    if header.position is None or header.orientation is None:
        return header.location
    row, column = np.reshape(header.orientation, (2, 3))
    return float(np.dot(np.cross(row, column), header.position))


def _by_number(group: Sequence[Header]) -> list[list[Header]]:
    """Order slices without a place by their numbers; if these repeat, by acquisition first."""
    parts = {"": list(group)}
    numbers = [header.number for header in group if header.number is not None]
    if len(set(numbers)) < len(numbers):
        for place in range(len(group[0].traits)):
            split = _split_by(group, (place,))
            repeats = any(
                len({h.number for h in part}) < len(part) for part in split.values()
            )
            if len(split) > 1 and not repeats:
                parts = split
                break
    ordered = []
    for key in sorted(parts):
        part = parts[key]
        ordered.append(sorted(part, key=lambda h: (h.number is None, h.number or 0, h.path)))
    return ordered


def _told_apart(
    group: Sequence[Header], places: dict[int, float]
) -> list[list[Header]] | None:
    """Split slices so that no two of a part share a place; None if no tag distinguishes them."""

    def clear(part: Sequence[Header]) -> bool:
        steps = np.diff(sorted(places[id(header)] for header in part))
        return bool((steps > _SAME_MM).all())

    if clear(group):
        # Acquisitions that follow one another in space form one run; interleaved ones do not.
        split = _split_by(group, (0,))
        parts = [split[key] for key in sorted(split)]
        spans = sorted(
            (min(places[id(h)] for h in part), max(places[id(h)] for h in part)) for part in parts
        )
        meet = any(b[0] < a[1] for a, b in itertools.pairwise(spans))
        return parts if meet and all(len(part) > 1 for part in parts) else [list(group)]
    for count in (1, 2):
        for chosen in itertools.combinations(range(len(group[0].traits)), count):
            parts = _split_by(group, chosen)
            if len(parts) > 1 and all(map(clear, parts.values())):
                return [parts[key] for key in sorted(parts)]
    return _by_time(group, places)


def _split_by(group: Sequence[Header], traits: Sequence[int]) -> dict[str, list[Header]]:
    parts: dict[str, list[Header]] = {}
    for header in group:
        values = [header.traits[place] or "" for place in traits]
        # Numbers as text that sorts in their order.
        key = "|".join(value.zfill(12) if value.isdigit() else value for value in values)
        parts.setdefault(key, []).append(header)
    return parts


def _by_time(
    group: Sequence[Header], places: dict[int, float]
) -> list[list[Header]] | None:
    """Split by time into the first image at each place, the second, and so on: phases of motion."""
    at: list[list[Header]] = []
    for header in sorted(group, key=lambda header: places[id(header)]):
        if at and places[id(header)] - places[id(at[-1][0])] <= _SAME_MM:
            at[-1].append(header)
        else:
            at.append([header])
    if len({len(found) for found in at}) != 1:
        return None
    for which in range(len(_TIMES) + 1):
        def key(header: Header, which: int = which) -> float | None:
            return header.number if which == len(_TIMES) else header.times[which]

        told = all(
            None not in (times := [key(header) for header in found])
            and len(set(times)) == len(times)
            for found in at
        )
        if told:
            ranked = [sorted(found, key=key) for found in at]
            return [list(phase) for phase in zip(*ranked, strict=True)]
    return None


def _trait(value: Any) -> str | None:
    """A tag's value as text for comparison alone; it is never shown."""
    if value is None:
        return None
    return str(list(value)) if not isinstance(value, str) and hasattr(value, "__iter__") else str(
        value
    )


def _time(value: Any) -> float | None:
    try:
        return float(str(value).replace(":", ""))
    except ValueError:
        return None


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
    # One wrong position could make a list of millions of places.
    if first := list(itertools.islice(missing, _SHOWN + 1)):
        shown = ", ".join(first[:_SHOWN]) + (", ..." if len(first) > _SHOWN else "")
        report(
            f"series {name} has gaps: no slice at {shown} mm along its normal "
            f"({len(places)} slices, one each {usual:.2f} mm)"
        )
    return usual


@dataclass(frozen=True)
class _Frame:
    number: int
    pixels: np.ndarray
    patient: str | None
    spacing: tuple[float, ...] | None
    window: tuple[float, float] | None
    run: int


def _frames(path: Path, max_pixels: int, report: Report) -> Iterator[_Frame]:
    with _open(path, pixels=True) as data:
        frames = _integer(data, "NumberOfFrames") or 1
        rows, columns = _integer(data, "Rows") or 0, _integer(data, "Columns") or 0
        check_size(path, rows, columns, max_pixels, frames)
        _complete(data)
        _check_length(data, frames, path)
        depth = (_integer(data, "BitsAllocated") or 8) * (_integer(data, "SamplesPerPixel") or 1)
        check_growth(path, rows * columns * frames * depth // 8)
        patient = _patient(data)
        for run, index in _frame_order(data, frames, path, report):
            try:
                groups = _functional_groups(data, index)
                pixels, window, said = _pixels(data, index, groups)
            except Exception as error:  # a damaged stream can raise any exception
                report(f"{path}{f', frame {index},' if frames > 1 else ''} {_reason(error)}")
                continue
            if said:
                logger.warning("%s recommends a window that cannot be read: it is ignored", path)
            yield _Frame(index, pixels, patient, _spacing(data, groups), window, run)


def _complete(data: Any) -> None:
    """Fill in the tags on the storage of pixels that a file leaves out."""
    for name in _WHOLE:
        if name in data and _integer(data, name) is None:
            del data[name]  # as if it were not there
    for name, value in _DEFAULTS.items():
        if _value(data, name) is None and (_value(data, "SamplesPerPixel") or name[0] == "S"):
            with contextlib.suppress(AttributeError, ValueError, TypeError):
                setattr(data, name, value(data))
    if getattr(data.file_meta, "TransferSyntaxUID", None):
        return
    from pydicom import uid

    element = data.get_item("PixelData") if "PixelData" in data else None
    implicit, little = data.original_encoding
    if element is not None and data["PixelData"].is_undefined_length:
        data.file_meta.TransferSyntaxUID = _compressed_syntax(data.PixelData)
    elif implicit:
        data.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    else:
        little = little is not False
        data.file_meta.TransferSyntaxUID = (
            uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        )


def _compressed_syntax(stream: bytes) -> str | None:
    """The transfer syntax of encapsulated pixels, told from the first bytes of a frame."""
    jpeg, jpeg_2000 = stream.find(b"\xff\xd8"), stream.find(b"\xff\x4f\xff\x51")
    if jpeg_2000 >= 0 and not 0 <= jpeg < jpeg_2000:
        return _JPEG_2000
    place = jpeg + 2
    while 2 <= place < len(stream) - 4 and stream[place] == 0xFF:
        if stream[place + 1] in _JPEG:
            return _JPEG[stream[place + 1]]
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return None


def _check_length(data: Any, frames: int, path: Path) -> None:
    """Refuse a number of frames for which the pixels do not suffice, before any work per frame.

    Raises:
        NormdetError: naming the bytes that are needed and those that are there.
    """
    from pydicom.encaps import parse_fragments
    from pydicom.pixels.utils import get_expected_length

    try:
        if data.file_meta.TransferSyntaxUID.is_compressed:
            # The first item is the table of the others' offsets.
            unit, needed, there = "fragments", frames, parse_fragments(data.PixelData)[0] - 1
        else:
            unit, needed = "bytes", get_expected_length(data)
            there = max(len(data.get(name) or b"") for name in _PIXELS)
    except Exception as error:  # a damaged header can raise any exception
        raise NormdetError(f"{path} {_reason(error)}") from None
    if frames < 1 or there < needed:
        raise NormdetError(
            f"{path} has pixels that cannot be read: for {frames} frames at least {needed} {unit} "
            f"are needed, and there are {there}"
        )


def _patient(data: Any) -> str | None:
    identity = _text(data, "PatientID") or _text(data, "StudyInstanceUID")
    return patient_key(identity) if identity else None


def _frame_order(data: Any, frames: int, path: Path, report: Report) -> list[tuple[int, int]]:
    """Frames with the number of their run, in the order of space if each states its place."""
    as_stored = [(0, index) for index in range(frames)]
    headers = []
    for index in range(frames if "PerFrameFunctionalGroupsSequence" in data else 0):
        try:
            groups = _functional_groups(data, index)
        except Exception:  # named when the frame is read
            return as_stored
        position = _first_numbers(groups, "ImagePositionPatient", 3)
        orientation = _first_numbers(groups, "ImageOrientationPatient", 6)
        if position is None or orientation is None:
            return as_stored
        traits = tuple(_trait(_first_value(groups, name)) for name in (*_TRAITS, "Rows", "Columns"))
        times = tuple(_time(_first_value(groups, name)) for name in _TIMES)
        headers.append(
            Header(path, None, None, None, 1, True, position, orientation, index,
                   None, traits, times)
        )  # fmt: skip
    runs = in_order(headers, path.name, report)
    ordered = [(n, header.number) for n, run in enumerate(runs) for header in run.headers]
    return ordered or as_stored


def _functional_groups(data: Any, index: int) -> list[Any]:
    """The places of a frame's attributes, the most specific first."""
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
) -> tuple[np.ndarray, tuple[float, float] | None, bool]:
    """Pixels, their window, and whether the file has a window that cannot be read."""
    from pydicom import pixels as decode

    array = decode.pixel_array(data, index=index)
    photometric = str(data.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        array = decode.apply_color_lut(array, data)
    if array.ndim == 3:
        return native(array[..., :3]), None, False
    slope = float(_first(groups, "RescaleSlope") or 1)
    intercept = float(_first(groups, "RescaleIntercept") or 0)
    if not np.isfinite((slope, intercept)).all():
        raise ValueError
    window, said = _window(groups)
    mirror = None
    if photometric == "MONOCHROME1":
        # Larger values are darker, so mirror them within the range of the bits.
        bits = int(data.get("BitsStored", 8 * array.dtype.itemsize))
        mirror = -1 if data.get("PixelRepresentation", 0) else (1 << bits) - 1
        array = (mirror - array.astype(np.int64)).astype(array.dtype)
    if data.get("ModalityLUTSequence"):
        array = decode.apply_modality_lut(array, data)
    elif (slope, intercept) != (1, 0):
        array = array.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if mirror is not None and window:
        window = slope * mirror + 2 * intercept - window[0], window[1]
    return native(array), window, said


def _window(groups: list[Any]) -> tuple[tuple[float, float] | None, bool]:
    """Center and width, and whether the tags are present but not a valid window."""
    values = []
    for name in ("WindowCenter", "WindowWidth"):
        try:
            value = _first(groups, name)
            # A file may hold several windows; the first is the default.
            several = hasattr(value, "__len__") and not isinstance(value, str)
            value = (value[0] if len(value) else None) if several else value
            values.append(None if value is None or value == "" else float(value))
        except Exception:  # pydicom's parsers raise errors of many kinds
            return None, True
    if values == [None, None]:
        present = any(_present(place, "WindowCenter") for place in groups)
        return None, present
    if None in values or not np.isfinite(values).all() or values[1] <= 0:
        return None, True
    return (values[0], values[1]), False


def _present(place: Any, name: str) -> bool:
    """Whether a tag is present and not empty; separators alone count as content."""
    try:
        element = place.get_item(name) if name in place else None
        return bool(element is not None and element.value)
    except Exception:
        return True


def _spacing(data: Any, groups: list[Any]) -> tuple[float, ...] | None:
    spacing = _lengths(groups, "PixelSpacing", 2) or _lengths([data], "ImagerPixelSpacing", 2)
    return spacing and spacing + (_lengths(groups, "SpacingBetweenSlices", 1) or ())


def _lengths(places: list[Any], name: str, count: int) -> tuple[float, ...] | None:
    """The first valid lengths: those above 0."""
    found = (_numbers(place, name, count) for place in places)
    return next((values for values in found if values and min(values) > 0), None)


def _first_numbers(places: list[Any], name: str, count: int) -> tuple[float, ...] | None:
    return next(filter(None, (_numbers(place, name, count) for place in places)), None)


def _first_value(groups: list[Any], name: str) -> Any:
    return next(filter(None, (_value(place, name) for place in groups)), None)


def _first(groups: list[Any], name: str) -> Any:
    for place in groups:
        value = place.get(name)
        if value is not None and value != "":
            return value
    return None


@contextlib.contextmanager
def _open(path: Path, pixels: bool) -> Iterator[Any]:
    """Read a file without pydicom's messages, which may quote tags."""
    try:
        import pydicom
    except ImportError as error:
        raise missing_extra("pydicom") from error
    with quiet():
        try:
            options = {} if pixels else {"stop_before_pixels": True, "specific_tags": _TAGS}
            _check_deflated(path)
            # Some scanners leave the preamble out.
            forced = path.suffix.lower() in SUFFIXES
            data = pydicom.dcmread(path, force=forced, **options)
            if not len(data) and not data.get("file_meta"):
                raise ValueError
        except NormdetError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                raise unreadable(path, error) from None
            # Do not chain: the cause may quote a tag, and a traceback would print it.
            raise NormdetError(f"{path} is not a DICOM file that can be read") from None
        yield data


def _check_deflated(path: Path) -> None:
    """Refuse a deflated file that inflates to far more than its size; pydicom inflates it whole.

    Raises:
        NormdetError: a compression bomb.
    """
    check_regular(path)
    with open(path, "rb") as file:
        beginning = file.read(_META)
        if _DEFLATED not in beginning or beginning[128:132] != b"DICM":
            return
        # The first element, of four bytes, holds the group's length.
        file.seek(144 + int.from_bytes(beginning[140:144], "little"))
        inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := inflate.unconsumed_tail or file.read(_BLOCK):
            total += len(inflate.decompress(block, _BLOCK))
            check_growth(path, total)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, pydicom and highdicom log and warn nothing, since messages may quote tags."""
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
    """Why pixels could not be read, in words that are not from a tag."""
    if "missing dependencies" in str(error):
        return (
            "is compressed in a way that no installed decoder reads: "
            "pip install normdet[medical], or pylibjpeg with its plugins"
        )
    return f"has pixels that cannot be read: {type(error).__name__}"


def _value(data: Any, name: str) -> Any:
    try:
        value = data.get(name)
    except Exception:  # a value that does not parse counts as missing
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
