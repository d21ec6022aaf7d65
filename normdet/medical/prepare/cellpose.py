"""Read Cellpose's `_seg.npy`, which its window saves by default, without running the pickle."""

from pathlib import Path

import numpy as np

from normdet.data.slices import check_size
from normdet.errors import NormdetError
from normdet.files.read import check_regular, read_npy_head
from normdet.weights.files import load_arrays

ENDING = "_seg.npy"
# A file has the masks, the image and flows of five floats per pixel.
_LARGEST = 2 << 30


def read_masks(path: Path, max_pixels: int) -> np.ndarray:
    """The masks `(H, W)`, or `(Z, H, W)` of a stack.

    Raises:
        NormdetError: the file is not Cellpose's, is damaged, or would run code.
    """
    if check_regular(path) > _LARGEST:
        raise NormdetError(f"{path} is larger than {_LARGEST >> 30} GB: not read")
    try:
        with open(path, "rb") as file:
            read_npy_head(file)
            masks = load_arrays(file)["masks"]
    except Exception as error:  # a damaged pickle can raise nearly any exception
        raise NormdetError(
            f"{path} cannot be read as Cellpose's masks ({type(error).__name__}): save them as PNG "
            "or TIFF from Cellpose"
        ) from error
    if not isinstance(masks, np.ndarray) or masks.ndim not in (2, 3):
        raise NormdetError(f"{path} holds no masks of an image")
    check_size(path, *masks.shape[-2:], max_pixels, len(masks) if masks.ndim == 3 else 1)
    return masks
