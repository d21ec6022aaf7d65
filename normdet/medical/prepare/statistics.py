"""Grey values of a data set, image by image, without keeping the images."""

from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_util

from normdet.data.window import row_blocks, sample

# Values kept of each image for the percentiles.
_SAMPLE = 4096


@dataclass
class Intensities:
    """Evenly sampled values of the source before the window, of whole images and inside masks."""

    whole: list[np.ndarray] = field(default_factory=list)
    inside: list[np.ndarray] = field(default_factory=list)

    def add(self, pixels: np.ndarray, objects: list[dict]) -> None:
        """Add one image `(H, W)` or `(H, W, 3)` with its annotations."""
        self.whole.append(sample(pixels, _SAMPLE).astype(np.float32))
        masks = [entry["segmentation"] for entry in objects if "segmentation" in entry]
        rles = [mask for mask in masks if isinstance(mask, dict)]
        if rles:
            merged = mask_util.decode(mask_util.merge(rles)).astype(bool)
            self.inside.append(sample(pixels[merged], _SAMPLE).astype(np.float32))

    def summary(self) -> dict:
        """nnU-Net's numbers: mean, std, extremes and percentiles, of images and of foreground."""
        named = {"image": self.whole, "foreground": self.inside}
        return {name: _numbers(np.concatenate(parts)) for name, parts in named.items() if parts}


def _numbers(values: np.ndarray) -> dict:
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return {}
    result = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    for percentile in (0.5, 50, 99.5):
        result[f"percentile_{percentile:g}"] = np.percentile(values, percentile)
    return {key: round(float(value), 4) for key, value in result.items()}


def channel_sums(pixels: np.ndarray) -> np.ndarray:
    """Number, sum and sum of squares of each channel of a written image: `(3, 3)`.

    The channels are ordered as training reads them: BGR.
    """
    total = np.zeros((3, 3))
    for rows in row_blocks(pixels):
        block = pixels[rows]
        if pixels.ndim == 2:
            total += _sums(block)[:, None]
        else:
            total += np.stack([_sums(block[..., channel]) for channel in (2, 1, 0)], axis=1)
    return total


def _sums(channel: np.ndarray) -> np.ndarray:
    values = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
    if channel.dtype == np.uint8:
        counts = np.bincount(values.reshape(-1), minlength=256)
        grey = np.arange(256)
        return np.array([values.size, counts @ grey, counts @ grey**2], np.float64)
    values = values.astype(np.float64)
    return np.array([values.size, values.sum(), (values**2).sum()])


def mean_and_std(sums: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and std from summed :func:`channel_sums`; the std of a constant channel becomes 1."""
    count, total, squares = sums
    mean = total / np.maximum(count, 1)
    variance = np.maximum(squares / np.maximum(count, 1) - mean**2, 0)
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return np.round(mean, 3).tolist(), np.round(std, 3).tolist()


def quantiles(values: np.ndarray | list) -> dict[str, float]:
    """Smallest, 5 %, median, 95 % and largest."""
    if not len(values):
        return {}
    names = ("min", "5%", "median", "95%", "max")
    found = np.percentile(np.asarray(values, float), (0, 5, 50, 95, 100))
    return {name: round(float(value), 2) for name, value in zip(names, found, strict=True)}
