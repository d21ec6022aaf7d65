"""The few unlabelled images that a conversion is fitted to and measured on."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normdet.errors import NormdetError

# A window is up to this many times smaller or larger than the size it is resized to.
_ZOOM = 2**0.5


def held_out(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The images to fit to, and every fourth to measure on; fewer than 8 serve for both."""
    if len(images) < 8:
        return list(images), list(images)
    fitted = [image for k, image in enumerate(images) if k % 4 != 3]
    return fitted, list(images[3::4])


def centre_crops(images: Sequence[Tensor], size: int) -> Tensor:
    """The middle squares of `(C, H, W)` images as `(N, C, size, size)`; small ones are enlarged."""
    return torch.stack([_window(image, size, 0.5, 0.5, size) for image in images])


def random_crops(images: Sequence[Tensor], size: int, count: int, seed: int, step: int) -> Tensor:
    """A step's batch `(count, C, size, size)`: random windows of images, flipped and zoomed."""
    rng = np.random.default_rng((seed, step))
    crops = []
    for _ in range(count):
        image = images[rng.integers(len(images))]
        side = round(size * _ZOOM ** rng.uniform(-1, 1))
        crop = _window(image, size, rng.random(), rng.random(), side)
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(crops)


def _window(image: Tensor, size: int, top: float, left: float, side: int) -> Tensor:
    """A square of `side` pixels at a place given as shares, resized to `size`."""
    height, width = image.shape[1:]
    side = min(side, height, width)
    y, x = round(top * (height - side)), round(left * (width - side))
    crop = image[:, y : y + side, x : x + side].float()
    if side == size:
        return crop
    scaled = F.interpolate(crop[None], size=(size, size), mode="bilinear", antialias=True)
    return scaled[0]


def check_size(size: int, divisor: int) -> None:
    """Refuse a crop that a model would pad.

    Raises:
        NormdetError: naming the flag.
    """
    if size < divisor or size % max(divisor, 1):
        raise NormdetError(f"squares of {size} pixels: this model takes multiples of {divisor}")
