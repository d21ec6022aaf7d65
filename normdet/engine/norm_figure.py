"""Draw one run's norms over its iterations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normdet.files.style import save


def draw_training(
    curves: Mapping[str, Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]],
    stages: Sequence[str],
    file: Path | IO[bytes],
) -> None:
    """Small multiples over iterations: a row per statistic, a column per stage, a line per layer.

    Args:
        curves: by statistic, stage and layer, points `(iteration, value)`.
        stages: those in the curves, in the order data flows.
        file: the PNG to write.
    """
    size = max(1.4 * len(stages) + 0.6, 5), 1.4 * len(curves) + 0.6
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(len(curves), len(stages), squeeze=False, sharex=True, sharey="row")
    for row, (statistic, by_stage) in zip(grid, curves.items(), strict=True):
        row[0].set_ylabel(statistic)
        for axes, stage in zip(row, stages, strict=True):
            _draw_lines(axes, list(by_stage.get(stage, {}).values()))
    for axes, stage in zip(grid[0], stages, strict=True):
        axes.set_title(stage, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("iteration")
    save(figure, file)


def _draw_lines(axes: Axes, lines: list[Sequence[tuple[int, float]]]) -> None:
    if not lines:
        axes.set_axis_off()
        return
    # From early layers, dark, to late ones, light.
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(lines)))
    for points, colour in zip(lines, shades, strict=True):
        marker = "." if len(points) < 3 else None
        axes.plot(*zip(*points, strict=True), color=colour, lw=1, marker=marker)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
