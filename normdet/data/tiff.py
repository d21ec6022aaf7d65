"""Read TIFF as images, by its axes, photometric interpretation, orientation and planar order.

tifffile reads the samples as they are stored, and this module interprets them. If tifffile lacks a
codec (LZW and JPEG need imagecodecs), Pillow decodes.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from tifffile import PHOTOMETRIC, TiffPage, TiffPageSeries

from normdet.data.choice import Choice
from normdet.data.slices import check_growth, check_size, native
from normdet.errors import NormdetError

_logger = logging.getLogger("tifffile")

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# The most pages; each costs as much as a small file.
MAX_PAGES = 1 << 14
_ORIENTATION = 274
_INK_SET, _CMYK_INKS = 332, 1
_ALPHA = (1, 2)
# In whole slides the other series are a thumbnail, a label and a picture of the glass.
_SLIDES = ("svs", "scn", "ndpi", "bif", "philips", "avs", "qpi")
# Samples of a pixel before extra ones.
_SAMPLES = {PHOTOMETRIC.RGB: 3, PHOTOMETRIC.SEPARATED: 4, PHOTOMETRIC.YCBCR: 3}
_GREY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)


@dataclass(frozen=True)
class _Part:
    """A series, or a page that belongs to none, with its axes identified.

    Attributes:
        stored: tifffile's.
        planes: the number along depth, time and all other axes together.
        channels: the number along the axis of channels.
        height, width: as stored.
    """

    stored: TiffPageSeries | TiffPage
    planes: int
    channels: int
    height: int
    width: int

    @property
    def page(self) -> TiffPage:
        return self.stored.keyframe

    @property
    def orientation(self) -> int:
        tag = self.page.tags.get(_ORIENTATION)
        return int(tag.value) if tag is not None and 1 <= int(tag.value) <= 8 else 1

    @property
    def bytes(self) -> int:
        """The bytes of all its samples."""
        return int(np.prod(self.stored.shape, dtype=np.float64)) * self.stored.dtype.itemsize

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        size = self.height, self.width
        return size[::-1] if self.orientation > 4 else size


def read(path: Path, *, max_pixels: int, labels: bool, choice: Choice) -> list[np.ndarray]:
    """The images of a file, each `(H, W)` or `(H, W, 3)` RGB.

    Args:
        path: the file.
        max_pixels: the largest plane that is read.
        labels: give samples as they are stored: no colour is looked up and no grey is inverted;
            channels are planes.
        choice: of channels and planes.

    Raises:
        NormdetError: the file is too large, holds no image, or has a colour space or samples that
            cannot be converted.
    """
    images: list[np.ndarray] = []
    with _opened(path) as file:
        parts = list(_parts(file, path))
        for part in parts:
            check_size(path, part.height, part.width, max_pixels, part.planes * part.channels)
        check_growth(path, sum(part.bytes for part in parts), labels)
        for part in parts:
            images += _read_part(file, part, path, labels, choice)
    if not images:
        raise NormdetError(f"{path} holds no image")
    if not labels and choice.planes == "max" and len({image.shape for image in images}) == 1:
        images = [np.max(images, axis=0)]
    else:
        images = [images[place] for place in choice.places(len(images), str(path))]
    return [native(image) for image in images]


def header(path: Path, *, labels: bool, choice: Choice) -> tuple[int, int, int, np.dtype]:
    """Height, width, number and type of the images that :func:`read` gives; no pixel is read.

    Raises:
        NormdetError: as :func:`read`, as far as headers show it, or the file is cut short.
    """
    with _opened(path) as file:
        parts = list(_parts(file, path))
        if not parts:
            raise NormdetError(f"{path} holds no image")
        check_growth(path, sum(part.bytes for part in parts), labels)
        for part in parts:
            page = part.page
            ends = map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))
            if max(ends, default=0) > file.filehandle.size:
                raise NormdetError(f"{path} is cut short")
        first = parts[0]
        planes = sum(part.planes * (part.channels if labels else 1) for part in parts)
        colours = first.page.photometric in (PHOTOMETRIC.PALETTE, PHOTOMETRIC.YCBCR)
        eight = first.stored.dtype == bool or (colours and not labels)
        dtype = np.dtype(np.uint8) if eight else first.stored.dtype
    count = planes if labels and choice.planes == "max" else choice.count(planes)
    return *first.upright, count, dtype


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open the file and silence tifffile's messages, which name it and do not stop the reading."""
    level = _logger.level
    _logger.setLevel(logging.CRITICAL + 1)
    try:
        with tifffile.TiffFile(path, _multifile=False) as file:
            yield file
    finally:
        _logger.setLevel(level)


def _parts(file: tifffile.TiffFile, path: Path) -> Iterator[_Part]:
    """The pages that are neither smaller copies of others nor masks of transparency."""
    _check_pages(file, path)
    series = file.series
    if series and series[0].kind in _SLIDES:
        series = series[:1]
    if len(series) > 1 and series[0].kind == "generic":
        # Pages of several sizes in their stored order.
        pages = (page for one in series for page in one.pages)
        series = sorted((page.aspage() for page in pages if page), key=lambda page: page.index)
    for stored in series:
        page = stored.keyframe
        if page.is_reduced or page.photometric == PHOTOMETRIC.MASK or not page.shape:
            continue
        sizes = dict(zip(stored.axes, stored.shape, strict=True))
        # Axes without a name are called Q, and tools write some of length 1.
        told = "".join(
            axis for axis, size in zip(stored.axes, stored.shape, strict=True)
            if axis != "Q" or size > 1
        )  # fmt: skip
        if "Y" not in sizes or "X" not in sizes or len(set(told)) < len(told):
            raise NormdetError(f"{path} has the axes {stored.axes}: no image is told in them")
        if stored.dtype is None or stored.dtype.kind not in "buif":
            raise NormdetError(f"{path} has samples of type {stored.dtype}, which are no pixels")
        channels, samples = sizes.get("C", 1), sizes.get("S", 1)
        planes = int(np.prod(stored.shape, dtype=np.int64))
        planes //= max(1, channels * samples * sizes["Y"] * sizes["X"])
        yield _Part(stored, planes, channels, sizes["Y"], sizes["X"])


def _check_pages(file: tifffile.TiffFile, path: Path) -> None:
    try:
        file.pages.get(MAX_PAGES)
    except IndexError:
        return
    raise NormdetError(
        f"{path} has more than the {MAX_PAGES:,} pages that are read, or they form a circle: "
        "split it"
    )


def _read_part(
    file: tifffile.TiffFile, part: _Part, path: Path, labels: bool, choice: Choice
) -> list[np.ndarray]:
    by_pillow = part.page.photometric == PHOTOMETRIC.YCBCR and not labels
    array, turned = _rgb_pages(file, part, path) if by_pillow else _stored(file, part, path)
    images = []
    for plane in array:
        channels = []
        for samples in plane:
            if not by_pillow:
                samples = _labels(samples) if labels else _meant(samples, part.page, path)
            if not turned:
                samples = _turn(samples, part.orientation)
            channels.append(samples)
        if labels:
            images += channels
            continue
        grey = part.page.photometric in _GREY
        if grey and channels[0].ndim == 3:  # several grey samples are channels
            channels = [one for stack in channels for one in np.moveaxis(stack, -1, 0)]
        if not grey and len(channels) > 1 and channels[0].ndim == 3:
            raise NormdetError(f"{path} has {len(channels)} channels of colours each")
        images.append(choice.pick(channels, str(path)) if grey else channels[0])
    return images


def _stored(file: tifffile.TiffFile, part: _Part, path: Path) -> tuple[np.ndarray, bool]:
    """Samples as stored `(planes, channels, H, W, S)`, and whether they are turned upright."""
    axes = part.stored.axes
    try:
        array = part.stored.asarray()
    except (ValueError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        pages = [_pillow_page(path, page.index, part.page, error) for page in _pages(part)]
        if len(part.stored.shape) == 2 + ("S" in axes) and len(pages) == 1:
            return pages[0].reshape(1, 1, *pages[0].shape[:2], -1), True
        # Pillow has the samples last, and pages in the order of the other axes.
        axes = axes.replace("Y", "").replace("X", "").replace("S", "") + "YX"
        sizes = dict(zip(part.stored.axes, part.stored.shape, strict=True))
        array = np.stack(pages)
        rest = array.shape[1:]
        array = array.reshape(*(sizes[axis] for axis in axes[:-2]), *rest)
        axes += "S" if array.ndim > len(axes) else ""
        return _sorted(array, axes), True
    return _sorted(array.reshape(part.stored.shape), axes), False


def _sorted(array: np.ndarray, axes: str) -> np.ndarray:
    """Reorder the axes to planes, channels, rows, columns and samples."""
    for axis in "CS":
        if axis not in axes:
            array, axes = array[..., None], axes + axis
    others = [place for place, axis in enumerate(axes) if axis not in "CYXS"]
    array = array.transpose(*others, *(axes.index(axis) for axis in "CYXS"))
    return array.reshape(-1, *array.shape[len(others) :])


def _pages(part: _Part) -> list:
    stored = part.stored
    pages = [stored] if isinstance(stored, TiffPage) else list(stored.pages)
    if any(page is None for page in pages):
        raise ValueError("pages are missing")
    return pages


def _pillow_page(path: Path, index: int, page: TiffPage, lacking: Exception) -> np.ndarray:
    """A page decoded by Pillow, upright, its samples as stored.

    Raises:
        Exception: `lacking`, if Pillow would change the samples' depth.
    """
    with Image.open(path) as image:
        image.seek(index)
        pixels = np.array(image)
        inverts = image.mode in ("1", "L")
    if pixels.dtype != page.dtype:
        raise lacking
    if page.photometric == PHOTOMETRIC.MINISWHITE and inverts:
        pixels = ~pixels
    return pixels


def _rgb_pages(file: tifffile.TiffFile, part: _Part, path: Path) -> tuple[np.ndarray, bool]:
    """Convert brightness and colour differences to RGB by Pillow, which handles subsampling."""
    if part.stored.dtype != np.uint8 or part.channels > 1:
        raise NormdetError(f"{path} has YCbCr colours of {part.stored.dtype}: convert it to RGB")
    pages = []
    for page in _pages(part):
        with Image.open(path) as image:
            image.seek(page.index)
            pages.append(np.array(image.convert("RGB")))
    return np.stack(pages)[:, None], True


def _labels(samples: np.ndarray) -> np.ndarray:
    """The stored numbers: `(H, W)`, or `(H, W, 3)` for a label in colours."""
    samples = samples[..., 0] if samples.shape[-1] < 3 else samples[..., :3]
    return _eight_bits(samples)


def _meant(samples: np.ndarray, page: TiffPage, path: Path) -> np.ndarray:
    """`(H, W, S)` as stored to `(H, W)` grey, `(H, W, 3)` RGB or `(H, W, C)` channels of grey."""
    photometric = page.photometric
    if photometric in _GREY:
        kinds = page.extrasamples
        samples = samples[..., : samples.shape[-1] - sum(kind in _ALPHA for kind in kinds)]
        if photometric == PHOTOMETRIC.MINISWHITE:
            samples = _inverted(samples, page.bitspersample)
        samples = _eight_bits(samples)
        return samples[..., 0] if samples.shape[-1] == 1 else samples
    if photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        table = page.colormap.T
        # Some writers fill only 8 of the 16 bits; libtiff handles this too.
        table = table >> 8 if table.max() > 255 else table
        return table.astype(np.uint8)[np.minimum(samples[..., 0], len(table) - 1)]
    needed = _SAMPLES.get(photometric, 0)
    if not needed or samples.shape[-1] < needed:
        name = getattr(photometric, "name", photometric)
        raise NormdetError(
            f"{path} has the colour space {name} with {samples.shape[-1]} samples, which is not "
            "converted: save it as RGB or grey"
        )
    if photometric == PHOTOMETRIC.SEPARATED:
        return _rgb_of_cmyk(samples[..., :4], page, path)
    return samples[..., :3]


def _inverted(samples: np.ndarray, bits: int) -> np.ndarray:
    """Invert images in which white is zero, as in scanned film."""
    if samples.dtype.kind == "u":
        return samples.dtype.type((1 << bits) - 1) - samples
    # Signed numbers and floats have no natural maximum, so negate them.
    return -samples if samples.dtype.kind == "f" else ~samples


def _rgb_of_cmyk(samples: np.ndarray, page: TiffPage, path: Path) -> np.ndarray:
    inks = page.tags.get(_INK_SET)
    if inks is not None and int(inks.value) != _CMYK_INKS:
        raise NormdetError(f"{path} has inks that are not CMYK: save it as RGB")
    if samples.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(samples), "CMYK")
        return np.array(image.convert("RGB"))
    if samples.dtype != np.uint16:
        raise NormdetError(f"{path} has CMYK of {samples.dtype}: save it as RGB")
    paper = 1 - samples.astype(np.float32) / 65535
    return (65535 * paper[..., :3] * paper[..., 3:]).round().astype(np.uint16)


def _eight_bits(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.uint8) * 255 if samples.dtype == bool else samples


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn upright by the number of TIFF's and EXIF's tag 274."""
    if orientation > 4:
        pixels = np.swapaxes(pixels, 0, 1)
        orientation = {5: 1, 6: 2, 7: 3, 8: 4}[orientation]
    rows = -1 if orientation in (3, 4) else 1
    columns = -1 if orientation in (2, 3) else 1
    return pixels[::rows, ::columns]
