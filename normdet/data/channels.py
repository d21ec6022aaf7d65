"""Grey and colour pixels as the channels that a model takes."""

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from normdet.errors import NormdetError

# ITU-R 601, which Pillow's "L" is made with.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def to_format(pixels: np.ndarray, image_format: str) -> np.ndarray:
    """Pixels as detectron2's `read_image` gives them.

    Args:
        pixels: `(H, W)` grey or `(H, W, 3)` RGB, of 8 bits or float32.
        image_format: `INPUT.FORMAT`: `"BGR"`, `"RGB"`, `"L"`, or, of 8 bits, another of
            detectron2's.

    Returns:
        `(H, W, 3)`, or `(H, W, 1)` for `"L"`.

    Raises:
        NormdetError: another format for pixels of more than 8 bits.
    """
    if image_format not in ("BGR", "RGB", "L"):
        if pixels.dtype != np.uint8:
            raise NormdetError(f"INPUT.FORMAT {image_format!r}: deep images need BGR, RGB or L")
        return convert_PIL_to_numpy(Image.fromarray(pixels), image_format)
    if image_format == "L":
        if pixels.ndim == 3:
            grey = pixels.dtype == np.uint8
            pixels = np.asarray(Image.fromarray(pixels).convert("L")) if grey else pixels @ _LUMA
        return pixels[..., None]
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return pixels[..., ::-1] if image_format == "BGR" else pixels
