"""The numbers of a layer or a stage, with their names.

The divergence is the Wasserstein-2 distance between two Gaussians per channel, in units of the
standard deviation that the layer divides by: `sqrt(shift^2 + (spread - 1)^2)`, with `shift` the
distance of the means in stored sigmas and `spread` the images' sigma over the stored one. It is 0
where the statistics agree, 1 where the mean is one sigma off or the channel is constant, and stays
finite. Both sigmas contain the layer's epsilon, as its output does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normdet.layers import NormLayer

from .traces import Moments, Trace

# Distances, in stored sigmas, below which a stage fits and from which on it is off. On the MSRA
# ResNet-50 the stages read 0.06 to 0.16 on COCO's photographs, 0.33 to 0.88 on stained blood cells
# and 0.41 to 0.97 on fluorescent nuclei, at 224 and 480 pixels (results/doctor.csv).
FITS, OFF = 0.25, 0.5
# BN trains as it should if batches differ less than this from the dataset, in its sigmas, in the
# noisiest stage. The same photographs read 0.10 to 0.12 in batches of 16, 0.15 to 0.16 in batches
# of 8 and 0.21 to 0.22 in batches of 4. On ImageNet BN's error is normal at 16 images, slightly
# higher at 8 and clearly higher at 4 (1803.08494).
NOISY = 0.15
BATCHES = (1, 2, 4, 8, 16)
# A layer saturates if this share of its channels is dead, or this share of its values clamped.
DEAD, CLAMPED = 0.05, 0.95


@dataclass(frozen=True)
class Row:
    """A layer or a stage; numbers it does not have are None.

    Attributes:
        name: of the layer in the model, or of the stage.
        stage: the stage it belongs to.
        channels: the number measured.
        distance: median over channels of the Wasserstein-2 distance, in stored sigmas.
        low: its first quartile.
        high: its third quartile.
        beyond: share of channels that are `OFF` or farther.
        shift: median of `|mean - stored mean|` in stored sigmas.
        variance_ratio: median of the images' variance over the stored one.
        noise: by images in a batch, the median distance of a batch from all images, in their
            sigmas.
        clamped: share of values at the activation's threshold.
        dead: share of channels with every value of every image at the threshold.
        saturated: whether `dead` or `clamped` are `DEAD` or `CLAMPED` or more.
    """

    name: str
    stage: str
    channels: int
    distance: float | None = None
    low: float | None = None
    high: float | None = None
    beyond: float | None = None
    shift: float | None = None
    variance_ratio: float | None = None
    noise: Mapping[int, float] = field(default_factory=dict)
    clamped: float | None = None
    dead: float | None = None
    saturated: bool = False

    @property
    def level(self) -> str:
        """The distance in words."""
        if self.distance is None:
            return "-"
        return "fits" if self.distance < FITS else "somewhat off" if self.distance < OFF else "off"


@dataclass(frozen=True)
class Channels:
    """One layer's measurements, each with a number per channel; absent ones are None.

    A :class:`Row` is made from it and has the same names.
    """

    distance: Tensor | None = None
    shift: Tensor | None = None
    variance_ratio: Tensor | None = None
    noise: Mapping[int, Tensor] = field(default_factory=dict)
    clamped: Tensor | None = None


def wasserstein(found: Moments, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """The distance defined above of each channel from `mean` and `var` `(C,)`."""
    sigma = (var + eps).sqrt()
    return torch.hypot((found.mean - mean) / sigma, (found.var + eps).sqrt() / sigma - 1)


def measure(
    layer: NormLayer, seen: Trace, stored: tuple[Tensor, Tensor] | None, sizes: Sequence[int]
) -> Channels:
    """The measurements of one layer, from its trace.

    Args:
        stored: mean and variance `(C,)` to compare with, if there are any.
        sizes: the batch sizes whose noise is measured, if there are images for four batches.
    """
    clamped = None if seen.clamped is None else seen.clamped.double() / seen.outputs
    if not seen.images:
        return Channels(clamped=clamped)
    everything, eps = Moments.pool(seen.images), layer.eps
    noise = {
        size: torch.stack(
            [wasserstein(b, everything.mean, everything.var, eps) for b in seen.batches(size)]
        ).mean(0)
        for size in sizes
        if 4 * size <= len(seen.images)
    }
    if stored is None:
        return Channels(noise=noise, clamped=clamped)
    mean, var = stored
    return Channels(
        distance=wasserstein(everything, mean, var, eps),
        shift=(everything.mean - mean).abs() / (var + eps).sqrt(),
        variance_ratio=(everything.var + eps) / (var + eps),
        noise=noise,
        clamped=clamped,
    )


def summarize(name: str, stage: str, parts: list[Channels]) -> Row:
    """The row of one layer, or of the layers of a stage, over all their channels."""

    def gathered(values: Iterable[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if present else None

    def median(values: Tensor | None, at: float = 0.5) -> float | None:
        return None if values is None else float(values.quantile(at))

    def share(values: Tensor | None) -> float | None:
        return None if values is None else float(values.double().mean())

    distance = gathered(part.distance for part in parts)
    clamped = gathered(part.clamped for part in parts)
    held = share(clamped)
    dead = None if clamped is None else share(clamped == 1)
    sizes = sorted({size for part in parts for size in part.noise})
    known = ((part.distance, part.noise.get(1), part.clamped) for part in parts)
    counts = [next((len(v) for v in values if v is not None), 0) for values in known]
    return Row(
        name=name,
        stage=stage,
        channels=sum(counts),
        distance=median(distance),
        low=median(distance, 0.25),
        high=median(distance, 0.75),
        beyond=None if distance is None else share(distance >= OFF),
        shift=median(gathered(part.shift for part in parts)),
        variance_ratio=median(gathered(part.variance_ratio for part in parts)),
        noise={n: median(gathered(part.noise.get(n) for part in parts)) for n in sizes},
        clamped=held,
        dead=dead,
        saturated=clamped is not None and (dead >= DEAD or held >= CLAMPED),
    )
