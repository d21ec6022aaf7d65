"""Map grey values of any range to the 8 bits that a detector takes.

MONAI's `ScaleIntensityRange(a_min, a_max, 0, 255, clip=True)` with the limits of a window: given
(`CT:40,400` is -160 to 240), the file's own, or percentiles (0.5 and 99.5, nnU-Net's).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from normdet.data.slices import Slice
from normdet.errors import NormdetError

FORMS = "auto, percentile, percentile:LOW,HIGH, CT:CENTER,WIDTH, file or none"
# nnU-Net's: robust to a few dead or burnt pixels.
PERCENTILES = (0.5, 99.5)
# Values kept of each slice for the percentiles of a stack.
_SAMPLE = 65536
# Values worked on at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Window:
    """How limits are found.

    Attributes:
        kind: `"auto"` (8 bits as they are, else as the file says, else percentiles),
            `"percentile"`, `"ct"`, `"file"` or `"none"`.
        low: the lower percentile, or the window's center.
        high: the upper percentile, or the window's width.
    """

    kind: str
    low: float = PERCENTILES[0]
    high: float = PERCENTILES[1]

    def __str__(self) -> str:
        numbers = f"{self.low:g},{self.high:g}"
        return {"ct": f"CT:{numbers}", "percentile": f"percentile:{numbers}"}.get(
            self.kind, self.kind
        )


def parse_window(text: str) -> Window:
    """Read `percentile`, `percentile:1,99`, `CT:40,400`, `file`, `none` or `auto`.

    Raises:
        NormdetError: on anything else, with the forms.
    """
    kind, colon, rest = text.partition(":")
    kind = kind.lower()
    try:
        numbers = [float(number) for number in rest.split(",")] if colon else []
    except ValueError:
        numbers = [np.nan]
    if kind in ("auto", "file", "none", "percentile") and not colon:
        return Window(kind)
    if len(numbers) == 2 and np.isfinite(numbers).all():
        first, second = numbers
        if kind == "ct" and second > 0:
            return Window("ct", first, second)
        if kind == "percentile" and 0 <= first < second <= 100:
            return Window("percentile", first, second)
    raise NormdetError(f"window {text!r}: one of {FORMS}")


def window_limits(window: Window, slices: Iterable[Slice]) -> tuple[float, float] | None:
    """The values that become black and white, the same for all of `slices` (one image or stack).

    Percentiles are those of up to 65,536 pixels a slice, evenly spaced; NaN does not count.

    Returns:
        The limits, or None for values that stay as they are.

    Raises:
        NormdetError: for the file's own window where it has none.
    """
    if window.kind == "none":
        return None
    if window.kind == "ct":
        return window.low - window.high / 2, window.low + window.high / 2
    samples = []
    for item in slices:
        if window.kind in ("auto", "file") and item.window:
            center, width = item.window
            return center - width / 2, center + width / 2
        if window.kind == "file":
            raise NormdetError(
                f"{item.source} recommends no window: give --window percentile or CT:CENTER,WIDTH"
            )
        if window.kind == "auto" and item.pixels.dtype == np.uint8:
            return None
        samples.append(sample(item.pixels, _SAMPLE))
    values = np.concatenate(samples) if samples else np.zeros(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    return tuple(np.percentile(values, (window.low, window.high)).tolist())


def sample(pixels: np.ndarray, most: int) -> np.ndarray:
    """Up to about `most` values of an array, evenly spaced: `(N,)`."""
    flat = pixels.reshape(-1)
    return flat[:: max(1, -(-flat.size // most))]


def apply_window(pixels: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """Map `limits` to 0 and 255, and clip; NaN becomes 0. Without limits the array stays.

    Args:
        pixels: `(H, W)` or `(H, W, 3)`.
        limits: of :func:`window_limits`.

    Returns:
        uint8 of the same shape, or `pixels` itself.
    """
    if limits is None:
        return pixels
    low, high = limits
    scale = 255 / max(high - low, 1e-6 * max(1.0, abs(low)))
    result = np.empty(pixels.shape, np.uint8)
    for rows in row_blocks(pixels):
        values = (pixels[rows].astype(np.float32) - low) * scale
        np.nan_to_num(values, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        result[rows] = values.clip(0, 255).round()
    return result


def row_blocks(pixels: np.ndarray) -> Iterator[slice]:
    """Rows of an image in blocks of a few megapixels: what is computed of them stays small."""
    height, *rest = pixels.shape
    step = max(1, _BLOCK // max(1, int(np.prod(rest))))
    for top in range(0, height, step):
        yield slice(top, top + step)
