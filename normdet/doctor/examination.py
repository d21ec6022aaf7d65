"""How far images lie from stored statistics, layer by layer, and what follows from it.

The divergence is the Wasserstein-2 distance between two Gaussians per channel, in units of the
standard deviation that the layer divides by: `sqrt(shift^2 + (spread - 1)^2)`, with `shift` the
distance of the means in stored sigmas and `spread` the images' sigma over the stored one. It is 0
where the statistics agree, 1 where the mean is one sigma off or the channel is constant, and stays
finite. Both sigmas contain the layer's epsilon, as its output does.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NormdetError
from ..layers import AddAct, NormLayer
from ..modeling.describe import PARTS, part_of
from .traces import Moments, Trace, has_stored_statistics, trace

# Distances, in stored sigmas, below which a stage fits and from which on it is off. On the MSRA
# ResNet-50 the stages read 0.06 to 0.16 on COCO's photographs, 0.33 to 0.88 on stained blood cells
# and 0.41 to 0.97 on fluorescent nuclei, at 224 and 480 pixels (results/doctor.csv).
FITS, OFF = 0.25, 0.5
# What batches may differ from the dataset, in its sigmas and the noisiest stage, for BN to train as
# it should. The same photographs read 0.10 to 0.12 in batches of 16, 0.15 to 0.16 in batches of 8
# and 0.21 to 0.22 in batches of 4. BN's error on ImageNet is its usual one at 16 images, has begun
# to rise at 8 and risen clearly at 4 (1803.08494, figure 5).
NOISY = 0.15
BATCHES = (1, 2, 4, 8, 16)
# A layer saturates where this share of its channels is dead, or of its values clamped.
DEAD, CLAMPED = 0.05, 0.95


@dataclass(frozen=True)
class Row:
    """A layer or a stage; numbers it does not have are None.

    Attributes:
        name: of the layer in the model, or of the stage.
        stage: that it belongs to.
        channels: how many were measured.
        distance: median over channels of the Wasserstein-2 distance, in stored sigmas.
        low: its first quartile.
        high: its third quartile.
        beyond: share of channels that are `OFF` or farther.
        shift: median of `|mean - stored mean|` in stored sigmas.
        variance_ratio: median of the images' variance over the stored one.
        noise: by images in a batch, the median distance of a batch from all images, in their
            sigmas.
        clamped: share of values the activation holds at its threshold.
        dead: share of channels of which it holds every value on every image.
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
class Examination:
    """What was found.

    Attributes:
        images: how many were read.
        compared_with: what the distances are taken from, in words; `""` where there is nothing.
        layers: a row for each, in the model's order.
        stages: a row for each part of the detector, in the order data flows.
        notes: what else must be known, a sentence each.
    """

    images: int
    compared_with: str
    layers: list[Row]
    stages: list[Row]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON; stages carry their level."""
        plain = asdict(self)
        for row, stage in zip(plain["stages"], self.stages, strict=True):
            row["level"] = stage.level
        return plain


@dataclass(frozen=True)
class _Channels:
    """One layer's measurements, a number per channel each; absent ones are None or not there."""

    distance: Tensor | None = None
    shift: Tensor | None = None
    variance_ratio: Tensor | None = None
    noise: Mapping[int, Tensor] = field(default_factory=dict)
    clamped: Tensor | None = None


def wasserstein(found: Moments, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """The distance of this module's docstring, for each channel, from `mean` and `var` `(C,)`."""
    sigma = (var + eps).sqrt()
    return torch.hypot((found.mean - mean) / sigma, (found.var + eps).sqrt() / sigma - 1)


def layers_to_watch(model: nn.Module) -> dict[str, NormLayer]:
    """Norms with stored statistics and activations that end residual blocks, as data flows.

    Raises:
        NormdetError: there is no such norm.
    """
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, NormLayer)]
    modules = dict(sorted(named, key=lambda item: PARTS.index(part_of(item[0]))))
    watched = {
        name: m
        for name, m in modules.items()
        if has_stored_statistics(m) or (isinstance(m, AddAct) and m.activation)
    }
    if not any(map(has_stored_statistics, watched.values())):
        others = sorted({str(m.option) for m in modules.values() if hasattr(m, "option")})
        which = f" (it has {', '.join(others)})" if others else ""
        raise NormdetError(
            f"nothing to examine: no norm of this model{which} has stored statistics; the doctor "
            "is for BN, FrozenBN and their kin"
        )
    return watched


def untrained_layers(layers: Mapping[str, NormLayer]) -> list[str]:
    """Those whose stored statistics are those of no data: mean 0 and variance 1."""
    return [
        name
        for name, layer in layers.items()
        if has_stored_statistics(layer)
        and not layer.running_mean.any()
        and bool(((layer.running_var - 1).abs() < 2e-5).all())
    ]


def examine(
    model: nn.Module,
    images: Iterable[Any],
    *,
    reference: Iterable[Any] | None = None,
    forward: Callable[[Any], Any] | None = None,
    batches: Iterable[int] = BATCHES,
) -> Examination:
    """Measure what the norms of a model see of images against what they have stored.

    The model runs in test mode, and is left so; nothing else of it changes. A layer behind one that
    is off sees what that one made of the images: shifts are reported as they arrive, not undone.

    Args:
        images: inputs of `forward`, of one image each, unpadded.
        reference: images whose statistics stand in for the stored ones.
        forward: what runs one image; the model itself by default.
        batches: the sizes whose noise is measured, where there are images for four of them.

    Raises:
        NormdetError: no norm has statistics, none of them was trained, or there is no image.
    """
    layers = layers_to_watch(model)
    stored, notes = _stored(layers)
    compared_with = "the stored statistics" if stored else ""
    if reference is not None:
        compared_with, notes = "the statistics of the reference images", []
        seen = trace(model, layers, reference, forward)
        pooled = {name: Moments.pool(one.images) for name, one in seen.items() if one.images}
        stored = {name: (moments.mean, moments.var) for name, moments in pooled.items()}
    traces = trace(model, layers, images, forward)
    count = max(len(seen.images) for seen in traces.values())
    if not count:
        raise NormdetError("no image reached a norm: nothing to examine")
    sizes = sorted({1, *batches})
    measured = {n: _measure(layers[n], traces[n], stored.get(n), sizes) for n in layers}
    by_stage: dict[str, list[_Channels]] = {}
    for name, channels in measured.items():
        by_stage.setdefault(stage_of(name), []).append(channels)
    rows = [_row(name, stage_of(name), [channels]) for name, channels in measured.items()]
    stages = [_row(stage, stage, parts) for stage, parts in by_stage.items()]
    notes = [*notes, *_saturated(rows), *_few_images(count, stages)]
    return Examination(count, compared_with, rows, stages, notes)


def stage_of(name: str) -> str:
    """The part of the detector a layer belongs to: `"res4"`, `"box head"`."""
    return part_of(name).removeprefix("backbone ")


def _affine_was_trained(layer: NormLayer) -> bool:
    weight, bias = layer.weight, layer.bias
    if weight is None or bias is None:
        return False
    return bool(bias.any()) or not bool(((weight == 0) | (weight == 1)).all())


def _stored(
    layers: Mapping[str, NormLayer],
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """The stored mean and variance of the layers that have learned them, and what to say of others.

    Folding turns `gamma, beta, mean, var` into a scale `gamma / sigma` and a shift
    `beta - gamma * mean / sigma`. Neither the input a layer was made for nor the output that it
    gave, `beta` and `|gamma|`, follows from these two.
    """
    normal = [name for name, layer in layers.items() if has_stored_statistics(layer)]
    unknown = untrained_layers(layers)
    folded = [name for name in unknown if _affine_was_trained(layers[name])]
    if len(unknown) == len(normal) and not folded:
        raise NormdetError(
            "this model was never trained: all its statistics have their initial mean 0 and "
            "variance 1; give --weights of a trained one"
        )
    notes = []
    if folded:
        notes.append(
            f"in {len(folded)} of {len(normal)} layers the statistics are folded into the affine, "
            "which keeps two of a channel's four numbers: what images they were made for cannot "
            "be told. Noise and dead channels hold; photographs as --reference can stand in"
        )
    if len(unknown) > len(folded):
        notes.append(
            f"{len(unknown) - len(folded)} of {len(normal)} layers have statistics that were never "
            "trained (mean 0, variance 1): no distance is given for them"
        )
    learned = (name for name in normal if name not in unknown)
    both = {name: (layers[name].running_mean, layers[name].running_var) for name in learned}
    return {n: (mean.double().cpu(), var.double().cpu()) for n, (mean, var) in both.items()}, notes


def _measure(
    layer: NormLayer, seen: Trace, stored: tuple[Tensor, Tensor] | None, sizes: Sequence[int]
) -> _Channels:
    clamped = None if seen.clamped is None else seen.clamped.double() / seen.outputs
    if not seen.images:
        return _Channels(clamped=clamped)
    everything, eps = Moments.pool(seen.images), layer.eps
    noise = {
        size: torch.stack(
            [wasserstein(b, everything.mean, everything.var, eps) for b in seen.batches(size)]
        ).mean(0)
        for size in sizes
        if 4 * size <= len(seen.images)
    }
    if stored is None:
        return _Channels(noise=noise, clamped=clamped)
    mean, var = stored
    return _Channels(
        distance=wasserstein(everything, mean, var, eps),
        shift=(everything.mean - mean).abs() / (var + eps).sqrt(),
        variance_ratio=(everything.var + eps) / (var + eps),
        noise=noise,
        clamped=clamped,
    )


def _row(name: str, stage: str, parts: list[_Channels]) -> Row:
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
    counts = (part.noise.get(1, part.clamped) for part in parts)
    return Row(
        name=name,
        stage=stage,
        channels=sum(len(values) for values in counts if values is not None),
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


def _saturated(layers: list[Row]) -> list[str]:
    """Which layers saturate, the worst first."""
    worst = sorted((row for row in layers if row.saturated), key=lambda row: -row.dead)
    if not worst:
        return []
    named = ", ".join(
        f"{row.name.removeprefix('backbone.').removeprefix('bottom_up.')} "
        f"({row.dead:.0%} of its channels dead, {row.clamped:.0%} of its values clamped)"
        for row in worst[:4]
    )
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return [f"on these images {named}{more} saturate{'' if len(worst) > 1 else 's'}"]


def _few_images(count: int, stages: list[Row]) -> list[str]:
    """How surely the distances are known, where that is not surely enough."""
    noise = max((row.noise[1] for row in stages if 1 in row.noise), default=math.inf)
    if noise / math.sqrt(count) <= FITS / 2:
        return []
    if math.isinf(noise):
        return [f"{count} images are too few to tell what is theirs and what is chance: take 32"]
    enough = math.ceil((2 * noise / FITS) ** 2)
    return [
        f"single images differ by {noise:.2f} sigma, so {count} of them leave distances uncertain "
        f"by {noise / math.sqrt(count):.2f}: take {enough} or more"
    ]
