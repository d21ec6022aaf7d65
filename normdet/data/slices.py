"""The input and the output of every reader: a source on disk, and its slices.

The plugin only reads image files (:mod:`normdet.data.image_file`). :mod:`normdet.medical.readers`
reads DICOM and NIfTI, which need more libraries, into the same slices.
"""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normdet.errors import NormdetError

# The largest image unless the caller allows more: 10,000 x 10,000.
MAX_PIXELS = 100_000_000
# A volume may hold this many slices of the largest size.
MAX_VOXELS_PER_PIXEL = 20

# The most that compression may shrink pixels. Real pictures shrink far less; one colour shrinks a
# thousandfold.
MOST_GROWTH = 200
# Fewer bytes than this are no bomb; label images of few objects are nearly all zeros.
_HARMLESS, _HARMLESS_LABELS = 64 << 20, 2 << 30

# Each process draws its own secret. So a patient's key reveals nothing about the patient, even to
# someone who tries every possible number.
_SECRET = secrets.token_bytes(32)


@dataclass(frozen=True)
class Source:
    """One image file, one volume, or the files of one DICOM series.

    Attributes:
        kind: `"image"`, `"dicom"` or `"nifti"`.
        paths: its files; those of a series in any order.
        name: unique among the sources found together, fit for a file name. DICOM sources get a
            number, since their files are often named after patients.
    """

    kind: str
    paths: tuple[Path, ...]
    name: str


@dataclass(frozen=True)
class Slice:
    """One two-dimensional image in the file's values, before any window.

    Attributes:
        pixels: `(H, W)` or `(H, W, 3)` in the file's precision: integers as stored, or float32 in
            the file's units (such as HU) if it has a scale.
        name: unique among the slices of sources found together, fit for a file name.
        patient: a key equal for images of one patient within this process, or None if unknown.
        spacing: mm between rows and between columns, in a volume also between slices; None if
            unknown.
        window: center and width that the file recommends, in the units of `pixels`, or None.
        source: the file it was read from.
        index: its place in the volume, series or stack, from 0.
        frame: its place in its file, from 0, in the stored order.
        stack: slices of one source with the same number are neighbours in space. A series may hold
        several acquisitions, which have different numbers.
    """

    pixels: np.ndarray
    name: str
    patient: str | None
    spacing: tuple[float, ...] | None
    window: tuple[float, float] | None
    source: Path
    index: int = 0
    frame: int = 0
    stack: int = 0


def patient_key(identity: str) -> str:
    """An opaque key, equal for equal identities in this process and unrelated in others."""
    return hashlib.blake2b(identity.encode(), key=_SECRET, digest_size=12).hexdigest()


def native(pixels: np.ndarray) -> np.ndarray:
    """The pixels in this machine's byte order, and no wider than float32."""
    if pixels.dtype == np.float64:
        return pixels.astype(np.float32)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def check_size(path: Path, height: int, width: int, max_pixels: int, slices: int = 1) -> None:
    """Refuse an image that is larger than allowed by its header, before allocating memory.

    Raises:
        NormdetError: naming the size and the flag.
    """
    if height < 1 or width < 1:
        raise NormdetError(f"{path} states a size of {width}x{height} pixels")
    if height * width > max_pixels:
        raise NormdetError(
            f"{path} has {width}x{height} pixels, more than the {max_pixels:,} that are read: "
            "raise --max-pixels, or cut it into tiles"
        )
    if height * width * slices > max_pixels * MAX_VOXELS_PER_PIXEL:
        raise NormdetError(
            f"{path} has {slices} slices of {width}x{height} pixels, more than "
            f"{max_pixels * MAX_VOXELS_PER_PIXEL:,} in all: raise --max-pixels"
        )


def check_growth(path: Path, unpacked: int, labels: bool = False) -> None:
    """Refuse more pixels than a file of its size can hold, unless they are all alike.

    Args:
        path: the file.
        unpacked: bytes of its pixels, by its header.
        labels: whether they are labels.

    Raises:
        NormdetError: a compression bomb, or an image that shows nothing.
    """
    stored = path.stat().st_size
    if unpacked > max(_HARMLESS_LABELS if labels else _HARMLESS, MOST_GROWTH * stored):
        raise NormdetError(
            f"{path} unpacks to {unpacked / 1e9:.2g} GB from {stored / 1e6:.2g} MB: it is a "
            "compression bomb, or shows nothing"
        )
