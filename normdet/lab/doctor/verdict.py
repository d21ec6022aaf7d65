"""The verdict in one line, and the commands that follow from it."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from normdet.option_text import FROZEN

from .examination import Examination
from .rows import FITS, NOISY, OFF, Row

# Norms that need no batch, in the order of the advice.
BATCHLESS = ("GN", "FRN+TLU")
# The share of the old normalization that a conversion keeps at first (results/conversion.csv).
KEEP = 0.9


@dataclass(frozen=True)
class Invocation:
    """The user's files and settings, which the next commands repeat.

    Attributes:
        config_file: as given.
        weights: as given.
        norm: the norm of the model by its config.
        images: files and folders of the images, if `dataset` does not name them.
        dataset: its name, or None.
        norm_flag: the value of `--norm`, or None.
        norm_parts: the value of `--norm-parts`.
        images_per_gpu: in training.
        freeze_at: `MODEL.BACKBONE.FREEZE_AT`.
        opts: further `KEY VALUE` pairs.
    """

    config_file: str
    weights: str
    norm: str
    images: Sequence[str]
    dataset: str | None
    norm_flag: str | None = None
    norm_parts: Sequence[str] = ()
    images_per_gpu: int = 2
    freeze_at: int = 2
    opts: Sequence[str] = ()


def noisiest(found: Examination, size: int) -> Row | None:
    """The stage in which batches of `size` images differ most; None if they were not measured."""
    rows = [row for row in found.stages if size in row.noise]
    return max(rows, key=lambda row: row.noise[size], default=None)


def stages_at(found: Examination, *levels: str) -> list[Row]:
    """The stages of these levels."""
    return [row for row in found.stages if row.level in levels]


def verdict(found: Examination, call: Invocation) -> str:
    """One sentence: where the statistics fit, and which norm to train."""
    off, beside = stages_at(found, "off"), stages_at(found, "somewhat off")
    known = {row.name: row.distance for row in found.stages if row.distance is not None}
    if not known:
        first = "nothing stored to compare with: whether the frozen norm fits cannot be told"
    elif off:
        first = f"{_seen(found, off)}: a learnable norm is worth it"
    elif beside:
        first = f"{_seen(found, beside)}, somewhat off: a learnable norm may help, compare both"
    else:
        names = [row.name for row in found.stages]
        where = "all stages see" if len(known) == len(names) else f"{span(known, names)} see"
        near = f"{where} statistics within {max(known.values()):.2f} sigma of {_those(found)}"
        if _unsteady(found, call):
            size = call.images_per_gpu
            return f"{near}: freeze them; batches of {_images(size)} are too unlike for {call.norm}"
        return f"{near}: {call.norm} fits these images, keep it"
    return f"{first}; {_advice(found, call)}"


def _seen(found: Examination, rows: list[Row]) -> str:
    low, high = (f"{f(row.distance for row in rows):.1f}" for f in (min, max))
    far = high if low == high else f"{low} to {high}"
    names = [row.name for row in found.stages]
    return f"{span([row.name for row in rows], names)} see statistics {far} sigma from " + _those(
        found
    )


def _those(found: Examination) -> str:
    return "those stored" if "stored" in found.compared_with else "the reference images'"


def _advice(found: Examination, call: Invocation) -> str:
    size = call.images_per_gpu
    noise = _noise(found, call)
    choice = " or ".join(BATCHLESS)
    if noise is None:
        return f"too few images to tell how BN does at {size} per GPU: choose {choice}"
    if noise >= NOISY:
        return f"at {_images(size)} per GPU choose {choice}, not BN"
    return f"at {_images(size)} per GPU BN sees steady statistics: BN, {choice} all do"


def _unsteady(found: Examination, call: Invocation) -> bool:
    """Whether the model's norm would train on batches that are too noisy for it."""
    # SyncBN's batches come from all GPUs, whose number is not known.
    if call.norm in (FROZEN, "EvalNorm", "SyncBN"):
        return False
    noise = _noise(found, call)
    return noise is not None and noise >= NOISY


def _noise(found: Examination, call: Invocation) -> float | None:
    """The noisiest stage's noise at the batch size of training; None if it was not measured."""
    row = noisiest(found, call.images_per_gpu)
    return None if row is None else row.noise[call.images_per_gpu]


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def span(chosen: Collection[str], names: Sequence[str]) -> str:
    """Some of the ordered names as text, with neighbours joined: `res2, res4-res5`."""
    runs: list[list[str]] = []
    for before, name in zip([None, *names], names, strict=False):
        if name in chosen:
            if runs and before == runs[-1][-1]:
                runs[-1].append(name)
            else:
                runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def next_commands(found: Examination, call: Invocation) -> list[str]:
    """The next commands: a `normdet convert` and a `normdet train` for each norm to try.

    The new norm replaces old norms only. A part without a norm, such as the FPN and the heads
    beside a frozen backbone, stays without: there an untrained norm costs a fine-tuning more than
    it gives (results/medical.csv).
    """
    config = ["--config-file", call.config_file]
    given = ["--norm", call.norm_flag] if call.norm_flag else []
    given += ["--norm-parts", ",".join(call.norm_parts)] if call.norm_parts else []
    poor = stages_at(found, "off", "somewhat off")
    known = any(row.distance is not None for row in found.stages)
    weights = ["MODEL.WEIGHTS", call.weights]
    if known and not poor:
        if _unsteady(found, call):
            parts = ",".join(call.norm_parts) or "backbone"
            given = ["--norm", FROZEN, "--norm-parts", parts]
        return [_line("train", *config, *given, *weights, *call.opts)]
    frozen = ("stem", "res2", "res3", "res4", "res5")[: call.freeze_at]
    thaw = ["MODEL.BACKBONE.FREEZE_AT", "0"] if any(row.name in frozen for row in poor) else []
    lines = []
    noise = _noise(found, call)
    if noise is not None and noise < NOISY and known:
        bn = ["--norm", "BN", "--norm-parts", "backbone"] if call.norm == FROZEN else given
        lines.append(_line("train", *config, *bn, *weights, *thaw, *call.opts))
    named = ["--dataset", call.dataset] if call.dataset else None
    source = named or [word for path in call.images for word in ("--images", path)]
    for norm in BATCHLESS:
        name = f"{Path(call.weights).stem}-{norm.lower().replace('+', '-')}"
        to = ["--to", norm, "--keep", str(KEEP), *config, *given, *source, "--out", f"{name}.pth"]
        lines += [
            _line("convert", call.weights, *to, *call.opts),
            _line("train", "--config-file", f"{name}.yaml", "OUTPUT_DIR", f"output/{name}", *thaw),
        ]
    return lines


def _line(*words: str) -> str:
    return shlex.join(["normdet", *words])


def reading() -> str:
    """How to read the numbers, for the terminal and the page."""
    return (
        "Distance: Wasserstein-2 between the images' and the stored Gaussian of each channel, in "
        f"stored sigmas; the median over channels. Below {FITS} fits, from {OFF} on is off. On an "
        "ImageNet ResNet-50 photographs read 0.06 to 0.16, blood cells 0.33 to 0.88, fluorescent "
        "nuclei 0.41 to 0.97. Later layers see what earlier ones made of the images: a shift there "
        f"is partly handed on. Noise: how far batches lie from all images; from {NOISY} on BN "
        "trains worse than it should."
    )
