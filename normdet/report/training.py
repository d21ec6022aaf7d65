"""`norms.html`: how the norms of a run went, from the curves it left."""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from normdet.errors import NormdetError
from normdet.modeling.describe import part_of
from normdet.weights.files import atomic_file

from . import page
from .history import read_history
from .norms import draw_training

# What :class:`normdet.engine.hooks.NormScalars` writes for every layer, in the order shown.
STATISTICS = {
    "clamped": "share of outputs that the activation holds at its threshold, tau or 0",
    "rms": "root of the mean square of the outputs",
    "gamma_mean": "mean of gamma over channels",
    "gamma_min": "the smallest gamma",
    "gamma_max": "the largest |gamma|",
    "tau_mean": "mean of TLU's tau over channels",
}

# By statistic, stage and layer: points (iteration, value).
Curves = dict[str, dict[str, dict[str, list[tuple[int, float]]]]]


def norm_curves(history: Sequence[dict]) -> Curves:
    """The curves of norms among those of a run, the known statistics first, then gates."""
    curves: Curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    names = dict.fromkeys(key for entry in history for key in entry if _is_norms(key))
    for key in names:
        layer, _, statistic = key.rpartition("/")
        points = [
            (entry["iteration"] + 1, float(entry[key]))
            for entry in history
            if isinstance(entry.get(key), int | float)
        ]
        if points:
            curves[statistic][part_of(layer).removeprefix("backbone ")][layer] = points
    ordered = [*(s for s in STATISTICS if s in curves), *(s for s in curves if s not in STATISTICS)]
    return {s: {stage: dict(v) for stage, v in curves[s].items()} for s in ordered}


def _is_norms(key: str) -> bool:
    """Whether a scalar is a layer's: losses and APs have no dotted name before the slash."""
    return "." in key.rpartition("/")[0]


def write_training_page(folder: Path) -> Path:
    """Write `norms.html` into a run's folder, from its `metrics.json`.

    Raises:
        NormdetError: there are no metrics, or none of norms among them.
    """
    curves = norm_curves(read_history(folder / "metrics.json"))
    if not curves:
        raise NormdetError(
            f"{folder / 'metrics.json'} has no curves of norms: the run ended before the first "
            "MODEL.NORMDET.STATISTICS_PERIOD iterations, or that is 0"
        )
    drawn = io.BytesIO()
    draw_training(curves, drawn)
    document = page.page(
        "Norms during training",
        [
            page.paragraph(
                "A column for each stage, a row for each statistic, a line for each layer, from "
                "dark to light in the order data flows. Layers that end up clamping all they see, "
                "or whose gamma dies, have stopped to learn."
            ),
            page.picture(drawn.getvalue(), "statistics of the norms over iterations, by stage"),
            page.heading("At the end"),
            page.table(*_last(curves)),
            page.heading("What they are"),
            page.table(
                ("statistic", "meaning"),
                [(s, STATISTICS.get(s, "a gate or share of the norm's own")) for s in curves],
            ),
        ],
    )
    file = folder / "norms.html"
    with atomic_file(file) as opened:
        opened.write(document.encode())
    return file


def _last(curves: Curves) -> tuple[list[str], list[list[str]]]:
    """Medians over each stage's layers of the last values: head and rows."""
    stages = dict.fromkeys(stage for by_stage in curves.values() for stage in by_stage)
    rows = []
    for stage in stages:
        row = [stage]
        for by_stage in curves.values():
            layers = by_stage.get(stage)
            row.append(f"{median(p[-1][1] for p in layers.values()):.3f}" if layers else "-")
        rows.append(row)
    return ["stage", *curves], rows
