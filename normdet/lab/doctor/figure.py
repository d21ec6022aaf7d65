"""Draw a model's layers on some images, in the order data flows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normdet.files.style import RUN_COLOURS, run_style, save

_BLUE, _RED, _GREEN = RUN_COLOURS[:3]


def draw_layers(layers: Sequence[Any], fits: float, off: float, noisy: float, path: Path) -> None:
    """Distance, noise and dead channels of each layer in the model's order, into the PNG `path`.

    Args:
        layers: as :class:`normdet.lab.doctor.rows.Row`.
        fits: the distance below which statistics fit.
        off: the distance from which on they are off.
        noisy: the noise from which on BN suffers.
        path: the file to write.
    """
    panels = [_draw_noise, _draw_dead]
    if any(row.distance is not None for row in layers):
        panels.insert(0, _draw_distance)
    figure = Figure(figsize=(11, 2.7 * len(panels) + 0.6), dpi=130, layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        panel(axes, layers, fits, off, noisy)
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, None)
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=6, fontsize=8)
    _name_stages(grid, [row.stage for row in layers])
    save(figure, path)


def _points(layers: Sequence[Any], value) -> tuple[list[int], list[float]]:
    found = [(x, value(row)) for x, row in enumerate(layers) if value(row) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _draw_distance(axes: Axes, layers, fits, off, noisy) -> None:
    x, middle = _points(layers, lambda row: row.distance)
    _, low = _points(layers, lambda row: row.low)
    _, high = _points(layers, lambda row: row.high)
    axes.fill_between(x, low, high, color=_BLUE, alpha=0.2, lw=0, label="half of the channels")
    axes.plot(x, middle, color=_BLUE, marker="o", ms=4, label="median")
    axes.axhline(fits, color=_GREEN, ls="--", lw=1.2, label=f"fits below {fits}")
    axes.axhline(off, color=_RED, ls="--", lw=1.2, label=f"off from {off}")
    axes.set_title("How far the images lie from the stored statistics", loc="left")
    axes.set_ylabel("distance, sigma")


def _draw_noise(axes: Axes, layers, fits, off, noisy) -> None:
    sizes = sorted({size for row in layers for size in row.noise})
    for index, size in enumerate(sizes):
        x, y = _points(layers, lambda row, size=size: row.noise.get(size))
        axes.plot(x, y, **run_style(index), ms=4, lw=1.3, label=str(size))
    axes.axhline(noisy, color="black", ls="--", lw=1.2, label=f"BN suffers: {noisy}")
    axes.set_title("How far batches of so many images lie from all of them", loc="left")
    axes.set_ylabel("noise, sigma")


def _draw_dead(axes: Axes, layers, fits, off, noisy) -> None:
    x, dead = _points(layers, lambda row: row.dead)
    axes.bar(x, [100 * share for share in dead], color=_RED, label="dead channels")
    x, held = _points(layers, lambda row: row.clamped)
    axes.plot(x, [100 * y for y in held], color=_BLUE, marker=".", lw=1.3, label="clamped values")
    axes.set_title("What the activation holds at its threshold", loc="left")
    axes.set_ylabel("percent")
    axes.set_xlabel("layers in the order data flows")


def _name_stages(grid: Sequence[Axes], stages: Sequence[str]) -> None:
    """Draw lines between stages in every panel, and their names below the last."""
    starts = [i for i, name in enumerate(stages) if i == 0 or name != stages[i - 1]]
    ends = [*starts[1:], len(stages)]
    for axes in grid:
        for start in starts[1:]:
            axes.axvline(start - 0.5, color="#999999", lw=0.8)
        axes.set_xlim(-0.7, len(stages) - 0.3)
    ticks = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    grid[-1].set_xticks(ticks, [stages[start].replace(" ", "\n") for start in starts])
    grid[-1].tick_params(axis="x", length=0)
