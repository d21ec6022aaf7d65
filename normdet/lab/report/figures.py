"""Figures of runs: curves over iterations, and predictions beside the truth.

Colours are those of Okabe and Ito, which colour-blind people can distinguish; lines also differ in
dash or marker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normdet.files.style import RUN_COLOURS, brightened, run_style, save

FOUND, FALSE, MISSED, TRUTH = "#56B4E9", "#D55E00", "#F0E442", "#FFFFFF"
# The IoU from which a prediction matches a nucleus, as in AP50.
MATCH_IOU = 0.5


@dataclass(frozen=True)
class Scene:
    """One image with its true masks and, by run, the predicted ones.

    Attributes:
        image: grey values `(H, W)`.
        truth: `(N, H, W)` bool.
        predicted: for each run's name `(M, H, W)` bool, most certain first.
    """

    image: np.ndarray
    truth: np.ndarray
    predicted: Mapping[str, np.ndarray]


def draw_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Loss and AP over iterations, a colour per run, into the PNG `path`.

    Args:
        histories: by run, entries with an `iteration` (from 0) and some of `total_loss`,
            `bbox/AP` and `segm/AP`.
        path: the file to write.
    """
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for (name, history), colour in zip(histories.items(), RUN_COLOURS, strict=False):
        _plot(losses, history, "total_loss", color=colour, label=name)
        _plot(scores, history, "bbox/AP", color=colour, marker="o", label=f"{name}, boxes")
        _plot(scores, history, "segm/AP", color=colour, marker="s", ls="--", label=f"{name}, masks")
    losses.set(title="Training loss", xlabel="iteration", ylabel="loss", ylim=(0, None))
    scores.set(title="COCO AP on the held-out part", xlabel="iteration", ylabel="AP", ylim=(0, 100))
    for axes, corner in ((losses, "upper right"), (scores, "lower right")):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc=corner, handlelength=3)
    save(figure, path)


def _plot(axes: Axes, history: Sequence[Mapping[str, float]], key: str, **style) -> None:
    points = [(entry["iteration"] + 1, entry[key]) for entry in history if key in entry]
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=1.8, markersize=5, **style)


def draw_scenes(scenes: Sequence[Scene], titles: Mapping[str, str], path: Path) -> None:
    """Draw a row per scene, the image, the truth and each run's predictions, into the PNG `path`.

    Args:
        scenes: of equal size, with the same runs.
        titles: the title of each run's column, by run.
        path: the file to write.
    """
    columns = 2 + len(titles)
    height, width = scenes[0].image.shape
    cell = 3.0
    rows_inches = cell * height / width * len(scenes)
    figure = Figure(figsize=(cell * columns, rows_inches + 0.8), dpi=120, layout="constrained")
    figure.get_layout_engine().set(hspace=0, wspace=0, h_pad=0.03, w_pad=0.03)
    grid = figure.subplots(len(scenes), columns, squeeze=False)
    for row, scene in zip(grid, scenes, strict=True):
        for axes in row:
            axes.imshow(brightened(scene.image), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
        _outline(row[1], scene.truth, TRUTH)
        for axes, name in zip(row[2:], titles, strict=True):
            predicted = scene.predicted[name]
            found, covered = match(scene.truth, predicted)
            _outline(axes, scene.truth[~covered], MISSED, linestyles="dotted")
            _outline(axes, predicted[~found], FALSE, linestyles="dashed")
            _outline(axes, predicted[found], FOUND)
    for axes, title in zip(grid[0], ("Image", "Truth", *titles.values()), strict=True):
        axes.set_title(title, fontsize=13)
    legend = figure.legend(
        handles=[
            Line2D([], [], color=TRUTH, lw=2, label="true outline"),
            Line2D([], [], color=FOUND, lw=2, label=f"found (IoU {MATCH_IOU} or more)"),
            Line2D([], [], color=FALSE, lw=2, ls="--", label="matches nothing true"),
            Line2D([], [], color=MISSED, lw=2, ls=":", label="missed"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=12,
        facecolor="#303030",
        labelcolor="white",
        framealpha=1,
    )
    legend.get_frame().set_linewidth(0)
    save(figure, path)


def match(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match predictions with nuclei.

    As in COCO's matching, each prediction in turn takes the free nucleus with which its IoU is
    highest, if that is `MATCH_IOU` or more.

    Args:
        truth: `(N, H, W)` bool.
        predicted: `(M, H, W)` bool, most certain first.

    Returns:
        Which predictions have a nucleus, `(M,)` bool, and which nuclei are found, `(N,)` bool.
    """
    found, covered = np.zeros(len(predicted), bool), np.zeros(len(truth), bool)
    for index, mask in enumerate(predicted):
        shared = (truth & mask).sum((1, 2))
        either = (truth | mask).sum((1, 2))
        iou = np.where(covered, 0, shared / np.maximum(either, 1))
        if len(iou) and iou.max() >= MATCH_IOU:
            found[index] = covered[iou.argmax()] = True
    return found, covered


def _outline(axes: Axes, masks: np.ndarray, colour: str, **style) -> None:
    for mask in masks:
        # An empty border closes the outlines of nuclei at the edge.
        height, width = mask.shape
        axes.contour(
            np.arange(-1, width + 1),
            np.arange(-1, height + 1),
            np.pad(mask, 1).astype(float),
            levels=[0.5],
            colors=[colour],
            linewidths=1.6,
            **style,
        )
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


@dataclass(frozen=True)
class Panel:
    """One plot over batch sizes, or over another number with few measured values.

    Attributes:
        title: above it.
        ylabel: of the vertical axis.
        series: by name, points of (images, mean, low, high); low and high None for no interval.
        from_zero: whether the axis starts at 0, as it should for costs.
        xlabel: of the horizontal axis.
    """

    title: str
    ylabel: str
    series: Mapping[str, Sequence[tuple[int, float, float | None, float | None]]]
    from_zero: bool = False
    xlabel: str = "images a step"


def draw_over_batch(panels: Sequence[Panel], path: Path) -> None:
    """Draw means with their intervals over the batch size into a PNG, with panels side by side.

    Points of one batch size are a little apart, so that intervals do not hide each other. The
    frame cuts an interval that is much longer than the spread of the means.
    """
    width = 7.6 if len(panels) == 1 else 5.2 * len(panels)
    figure = Figure(figsize=(width, 4.6), dpi=120, layout="constrained")
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        sizes = sorted({x for points in panel.series.values() for x, *_ in points})
        for name, points in panel.series.items():
            index = names.index(name)
            shift = 0.3 * ((index + 0.5) / len(names) - 0.5)
            x = [sizes.index(size) + shift for size, *_ in points]
            y = [mean for _, mean, *_ in points]
            style = run_style(index)
            axes.plot(x, y, linewidth=1.6, markersize=6, label=name, **style)
            for place, (_, _, low, high) in zip(x, points, strict=True):
                if low is not None:
                    axes.plot([place, place], [low, high], color=style["color"], lw=1.2)
        axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_xlim(-0.6, len(sizes) - 0.4)
        axes.set_ylim(*frame(panel))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure, *figure.axes[0].get_legend_handles_labels())
    save(figure, path)


def legend_below(figure: Figure, handles: Sequence[Line2D], names: Sequence[str]) -> None:
    """A legend in as many columns as the figure is wide enough for."""
    for columns in range(len(names), 0, -1):
        legend = figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def frame(panel: Panel) -> tuple[float, float]:
    points = [point for series in panel.series.values() for point in series]
    means = [mean for _, mean, *_ in points]
    ends = [end for _, _, *interval in points for end in interval if end is not None]
    room = 3 * max(max(means) - min(means), 0.05 * max(map(abs, means)), 1e-9)
    low = max(min(means + ends), min(means) - room, 0.0)
    high = min(max(means + ends), max(means) + room)
    low = 0.0 if panel.from_zero else low
    edge = 0.05 * (high - low) or 0.05
    return max(low - edge, 0.0), high + edge


@dataclass(frozen=True)
class Curve:
    """One run over time: the name of its series, and points of (images seen, value)."""

    name: str
    loss: Sequence[tuple[float, float]]
    score: Sequence[tuple[float, float]]


def draw_training(panels: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw loss and AP over the images seen into a PNG: a column per panel, a line per run.

    Runs of one name share a colour. An AP that was measured only at the end gives no curve.
    """
    every = [curve for curves in panels.values() for curve in curves]
    rows = 2 if any(len(curve.score) > 1 for curve in every) else 1
    width = max(6.0, 4.6 * len(panels))
    figure = Figure(figsize=(width, 0.4 + 3 * rows), dpi=130, layout="constrained")
    grid = figure.subplots(rows, len(panels), squeeze=False, sharex=True, sharey="row")
    names = list(dict.fromkeys(curve.name for curve in every))
    handles: dict[str, Line2D] = {}
    for column, (title, curves) in zip(grid.T, panels.items(), strict=True):
        for curve in curves:
            style = run_style(names.index(curve.name))
            for axes, points in zip(column, (curve.loss, curve.score)[:rows], strict=True):
                if not points:
                    continue
                look = style if len(points) <= 12 else {**style, "marker": ""}
                (line,) = axes.plot(*zip(*points, strict=True), lw=1.1, ms=4, **look)
                handles[curve.name] = line
        column[0].set_title(title)
        column[-1].set_xlabel("images seen")
        for axes in column:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    losses = [y for curve in every for _, y in curve.loss]
    if losses:
        # Leave out the losses of the first steps: from random weights they would flatten the rest.
        grid[0, 0].set_ylim(0, 1.3 * float(np.percentile(losses, 95)))
    grid[0, 0].set_ylabel("training loss")
    grid[0, 0].set_xlim(0, None)
    if rows == 2:
        grid[1, 0].set(ylabel="AP", ylim=(0, None))
    legend_below(figure, list(handles.values()), list(handles))
    save(figure, path)
