"""PNG, JPEG, BMP and TIFF, of 8 to 32 bits or float, also TIFF stacks."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from normdet.data.slices import Slice, Source, check_size, native
from normdet.errors import NormdetError
from normdet.files.faults import Report

logger = logging.getLogger(__name__)

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)

# Pillow's modes that are pixels as they are, and what others are turned into.
_PLAIN_MODES = ("L", "RGB", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_CONVERTED = {"1": "L", "LA": "L", "La": "L"}


def read(source: Source, *, max_pixels: int, report: Report) -> Iterator[Slice]:
    """The image of a file, or the pages of a TIFF."""
    (path,) = source.paths
    pages = list(read_pages(path, max_pixels=max_pixels))
    for index, pixels in enumerate(pages):
        name = source.name if len(pages) == 1 else f"{source.name}_{index:04d}"
        yield Slice(pixels, name, None, None, None, path, index)


def read_pages(path: Path, *, max_pixels: int, indices: bool = False) -> list[np.ndarray]:
    """Each page `(H, W)` or `(H, W, 3)`; one but for TIFF stacks.

    Args:
        path: the file.
        max_pixels: the largest page that is read.
        indices: read a file with a palette as places in it, which are labels, not as colours.

    Raises:
        NormdetError: a file that is damaged, too large, or has neither 1, 3 nor 4 channels.
    """
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            return _read_tiff(path, max_pixels)
        return [_read_pillow(path, max_pixels, indices)]
    except NormdetError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        raise _unreadable(path, error) from error


def _read_pillow(path: Path, max_pixels: int, indices: bool) -> np.ndarray:
    with _own_limit(), Image.open(path) as image:
        check_size(path, image.height, image.width, max_pixels)
        if image.mode == "RGB" and ";16" in str(image.tile):
            logger.warning("%s has 16 bits a colour, of which 8 are read: save TIFF", path)
        # As detectron2 reads it: the orientation that a camera notes is applied.
        image = ImageOps.exif_transpose(image)
        if image.mode not in _PLAIN_MODES and not (indices and image.mode == "P"):
            image = image.convert(_CONVERTED.get(image.mode, "RGB"))
        return native(np.array(image))


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Pillow's limit on the size of images lifted: ours is checked on the header."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def is_deep_tiff(path: Path) -> bool:
    """Whether the first page of a TIFF has more than 8 bits a channel, or signed ones.

    Pillow cannot be asked: it calls 16 bits of three channels RGB, and reads 8 of them.
    """
    try:
        with tifffile.TiffFile(path) as file:
            return file.pages.first.dtype not in (bool, np.uint8)
    except Exception:  # what is broken is named on reading
        return True


def page_count(path: Path) -> int:
    """How many pages :func:`read_pages` gives, told from the headers.

    Raises:
        NormdetError: a file that is damaged.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return 1
    try:
        with tifffile.TiffFile(path) as file:
            return len(_pages(file))
    except Exception as error:
        raise _unreadable(path, error) from error


def _pages(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Those that are no smaller copies of others."""
    return [page for page in file.pages if not page.is_reduced]


def _unreadable(path: Path, error: Exception) -> NormdetError:
    lines = str(error).splitlines() or [type(error).__name__]
    return NormdetError(f"{path} cannot be read as an image: {lines[0]}")


def _read_tiff(path: Path, max_pixels: int) -> list[np.ndarray]:
    arrays = []
    with tifffile.TiffFile(path) as file:
        pages = _pages(file)
        for page in pages:
            check_size(path, page.imagelength, page.imagewidth, max_pixels, len(pages))
        for page in pages:
            pixels = _decoded(page, path)
            if pixels.ndim == 3 and pixels.shape[-1] == 4:
                pixels = pixels[..., :3]
            if pixels.ndim != 2 and not (pixels.ndim == 3 and pixels.shape[-1] == 3):
                raise NormdetError(f"{path} has pages of shape {pixels.shape}: 1 or 3 channels")
            if pixels.dtype == bool:
                pixels = pixels.astype(np.uint8) * 255
            # MINISWHITE, as in scanned film: the larger the darker.
            if page.photometric == 0 and np.issubdtype(pixels.dtype, np.unsignedinteger):
                pixels = np.iinfo(pixels.dtype).max - pixels
            arrays.append(native(pixels))
    if not arrays:
        raise NormdetError(f"{path} holds no image")
    return arrays


def _decoded(page: tifffile.TiffPage, path: Path) -> np.ndarray:
    """The pixels of a page as stored, channels last."""
    try:
        pixels = page.asarray()
    except (ValueError, ImportError):
        # tifffile needs imagecodecs for LZW and JPEG. Pillow has them, for all but deep colours and
        # inverted greys.
        with _own_limit(), Image.open(path) as image:
            image.seek(page.index)
            pixels = np.array(image)
        if pixels.dtype != page.dtype or page.photometric == 0:
            raise
        return pixels
    return np.moveaxis(pixels, 0, -1) if page.axes.startswith("S") else pixels
