"""Image files as pixels: PNG, JPEG, BMP, WebP and TIFF, of 8 to 32 bits or float, also stacks.

Training, prepare, predict, doctor and convert all read through this file, so they all see the same
image.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from normdet.data import tiff
from normdet.data.choice import DEFAULT, Choice
from normdet.data.slices import Slice, Source, check_growth, check_size, native
from normdet.errors import NormdetError
from normdet.files.faults import Report, unreadable
from normdet.files.read import check_regular

logger = logging.getLogger(__name__)

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", *TIFF_SUFFIXES)

# The largest plane in training. The user chose the file, so its size is not limited.
ANY_SIZE = 1 << 40
# Pillow's modes whose pixels are used unchanged, and the modes that others are converted to.
_PLAIN_MODES = ("L", "RGB", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_CONVERTED = {"1": "L", "LA": "L", "La": "L"}
_ORIENTATION = 0x0112
# The number of last bytes of a file to search for its closing marks.
_END = 1 << 16


@dataclass(frozen=True)
class Header:
    """Facts from a file's header about its images, as the readers below give them.

    Attributes:
        height: in pixels, of the upright image.
        width: the same.
        count: of images, one except for stacks.
        deep: whether 8 bits a channel would lose something.
    """

    height: int
    width: int
    count: int
    deep: bool


def read(
    source: Source, *, max_pixels: int, report: Report, choice: Choice = DEFAULT
) -> Iterator[Slice]:
    """The images of a file."""
    (path,) = source.paths
    pages = read_pages(path, max_pixels=max_pixels, choice=choice)
    for index, pixels in enumerate(pages):
        name = source.name if len(pages) == 1 else f"{source.name}_{index:04d}"
        yield Slice(pixels, name, None, None, None, path, index)


def read_pages(
    path: Path, *, max_pixels: int, labels: bool = False, choice: Choice = DEFAULT
) -> list[np.ndarray]:
    """Each image of a file, `(H, W)` or `(H, W, 3)` RGB. Only TIFF stacks have several.

    Args:
        path: the file.
        max_pixels: the largest page that is read.
        labels: read numbers as they are stored, without looking up a palette or inverting grey.
        choice: of channels and planes, if a file has several.

    Raises:
        NormdetError: the file is damaged, too large, or has a colour space that is not converted.
    """
    with _sentences(path):
        if _is_tiff(path):
            with _own_limit():
                return tiff.read(path, max_pixels=max_pixels, labels=labels, choice=choice)
        return [_read_pillow(path, max_pixels, labels)]


def read_image(path: Path, choice: Choice = DEFAULT) -> np.ndarray:
    """The one image of a file, of any size: `(H, W)` or `(H, W, 3)` RGB.

    Raises:
        NormdetError: as :func:`read_pages`, and a file of several images.
    """
    pages = read_pages(path, max_pixels=ANY_SIZE, choice=choice)
    check_single(path, len(pages))
    return pages[0]


def check_single(path: Path, count: int) -> None:
    """Refuse a stack if one image is needed.

    Raises:
        NormdetError: naming the ways out.
    """
    if count > 1:
        raise NormdetError(
            f"{path} holds {count} planes, and one image is needed: choose by INPUT.PLANES "
            "(middle, max or a number), or let `normdet prepare` make an image of each"
        )


def read_header(path: Path, *, labels: bool = False, choice: Choice = DEFAULT) -> Header:
    """The facts about what :func:`read_pages` will return, without reading a pixel.

    Raises:
        NormdetError: a file whose header is damaged, or a TIFF that is cut short.
    """
    with _sentences(path):
        if _is_tiff(path):
            height, width, count, dtype = tiff.header(path, labels=labels, choice=choice)
            return Header(height, width, count, dtype != np.uint8)
        with _own_limit(), Image.open(path) as image:
            width, height = image.size
            check_growth(path, _unpacked(image), labels)
            if _orientation(image, path) in (5, 6, 7, 8):
                width, height = height, width
            return Header(height, width, 1, image.mode.startswith(("I", "F")))


def _unpacked(image: Image.Image) -> int:
    return image.width * image.height * len(image.getbands()) * (2 if "16" in image.mode else 1)


def mode_of(path: Path) -> str:
    """Pillow's mode of an image: `P` for indices into a table of colours; "" if it is damaged."""
    try:
        with Image.open(path) as image:
            return image.mode
    except Exception:  # reading it will report the damage
        return ""


def _orientation(image: Image.Image, path: Path) -> int:
    # Pillow's method for PNG would decode all pixels to search for a note behind them.
    ours = image.format != "PNG" or "exif" in image.info or b"eXIf" not in _end(path)
    exif = Image.Image.getexif(image) if ours else image.getexif()
    return exif.get(_ORIENTATION, 1)


def _end(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(_END, file.seek(0, 2)), 2)
        return file.read()


def _is_tiff(path: Path) -> bool:
    """Whether the content is TIFF. Names can be wrong, and Pillow reads TIFF differently."""
    check_regular(path)
    try:
        with open(path, "rb") as file:
            return file.read(4) in tiff.MAGIC
    except OSError as error:
        raise unreadable(path, error) from error


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Turn the errors of damaged files, which can be of nearly any kind, into one."""
    try:
        yield
    except NormdetError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise NormdetError(f"{path} cannot be read as an image: {lines[0]}") from error


def _read_pillow(path: Path, max_pixels: int, labels: bool) -> np.ndarray:
    with _own_limit(), Image.open(path) as image:
        check_size(path, image.height, image.width, max_pixels)
        check_growth(path, _unpacked(image), labels)
        if image.mode == "RGB" and ";16" in str(image.tile):
            logger.warning("%s has 16 bits a colour, of which 8 are read: save TIFF", path)
        kind = image.format
        # Apply the orientation that a camera noted, as detectron2 does. Others are not copied.
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode not in _PLAIN_MODES and not (labels and image.mode == "P"):
            image = image.convert(_CONVERTED.get(image.mode, "RGB"))
        pixels = np.array(image)
        # Pillow 9 reads a PNG of 16 bits as 32.
        return native(pixels.astype(np.uint16) if kind == "PNG" and image.mode == "I" else pixels)


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Lift Pillow's limit on image size, since ours is checked on the header."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
