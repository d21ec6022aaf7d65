"""Run images through a model and compare its norms' inputs with their stored statistics."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.layers import AddAct, NormLayer
from normdet.layers.batch_statistics import is_folded, of_no_data
from normdet.modeling.describe import TITLES, part_of

from .rows import BATCHES, FITS, Channels, Row, measure, summarize
from .traces import Moments, has_stored_statistics, trace


@dataclass(frozen=True)
class Examination:
    """The result of an examination.

    Attributes:
        images: the number read.
        compared_with: what the images are compared with, in words; `""` for nothing.
        layers: a row for each, in the model's order.
        stages: a row for each part of the detector, in the order data flows.
        notes: further remarks, a sentence each.
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


def layers_to_watch(model: nn.Module) -> dict[str, NormLayer]:
    """Norms with stored statistics and the last activations of residual blocks, as data flows.

    Raises:
        NormdetError: there is no such norm.
    """
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, NormLayer)]
    modules = dict(sorted(named, key=lambda item: TITLES.index(part_of(item[0]))))
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
    """The layers whose stored statistics are still the start values: mean 0 and variance 1."""
    return [
        name
        for name, layer in layers.items()
        if has_stored_statistics(layer) and of_no_data(layer.running_mean, layer.running_var)
    ]


def examine(
    model: nn.Module,
    images: Iterable[Any],
    *,
    reference: Iterable[Any] | None = None,
    forward: Callable[[Any], Any] | None = None,
    batches: Iterable[int] = BATCHES,
) -> Examination:
    """Compare the inputs of a model's norms on images with the norms' stored statistics.

    The model is put in test mode; nothing else of it changes. A layer behind one that is off sees
    that layer's outputs, so a shift is reported as it arrives and not undone.

    Args:
        images: inputs of `forward`, of one image each, unpadded.
        reference: images whose statistics replace the stored ones.
        forward: runs one image; the model itself by default.
        batches: the batch sizes whose noise is measured, if there are images for four batches.

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
    measured = {n: measure(layers[n], traces[n], stored.get(n), sizes) for n in layers}
    by_stage: dict[str, list[Channels]] = {}
    for name, channels in measured.items():
        by_stage.setdefault(stage_of(name), []).append(channels)
    rows = [summarize(name, stage_of(name), [channels]) for name, channels in measured.items()]
    stages = [summarize(stage, stage, parts) for stage, parts in by_stage.items()]
    notes = [*notes, *_saturated(rows), *_few_images(count, stages)]
    return Examination(count, compared_with, rows, stages, notes)


def stage_of(name: str) -> str:
    """The part of the detector a layer belongs to: `"res4"`, `"box head"`."""
    return part_of(name).removeprefix("backbone ")


_STATE = ("running_mean", "running_var", "weight", "bias")


def _stored(
    layers: Mapping[str, NormLayer],
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """The stored mean and variance of layers that have learned them, and notes on the others.

    Folding turns `gamma, beta, mean, var` into a scale `gamma / sigma` and a shift
    `beta - gamma * mean / sigma`. From these two follow neither the moments of a layer's inputs in
    training nor those of its outputs, `beta` and `|gamma|`.
    """
    normal = [name for name, layer in layers.items() if has_stored_statistics(layer)]
    unknown = untrained_layers(layers)
    folded = [
        name for name in unknown
        if is_folded(*(getattr(layers[name], part) for part in _STATE))
    ]  # fmt: skip
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
    """A note if the images are too few for reliable distances."""
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
