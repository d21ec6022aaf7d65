"""`norms.html`: the norms of a run over its iterations, from its curves."""

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from normdet.errors import NormdetError
from normdet.files import page
from normdet.files.atomic import atomic_file
from normdet.modeling.describe import TITLES, part_of

from .history import read_history
from .norm_figure import draw_training

# The statistics that :class:`.norm_hooks.NormScalars` writes for every layer, in the order shown.
STATISTICS = {
    "clamped": "share of outputs that the activation holds at its threshold, tau or 0",
    "rms": "root of the mean square of the outputs",
    "gamma_mean": "mean of gamma over channels",
    "gamma_min": "the smallest gamma",
    "gamma_max": "the largest |gamma|",
    "tau_mean": "mean of TLU's tau over channels",
}
_OWN = "a gate or share that the norm itself learns"

# By statistic, stage and layer: points (iteration, value).
Curves = dict[str, dict[str, dict[str, list[tuple[int, float]]]]]


def norm_curves(history: Sequence[dict]) -> Curves:
    """The curves of norms among those of a run, the known statistics first, then gates."""
    curves: Curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    names = {key for entry in history for key in entry if _is_norms(key)}
    for key in sorted(names, key=_place):
        layer, _, statistic = key.rpartition("/")
        points = [
            (entry["iteration"] + 1, float(entry[key]))
            for entry in history
            if isinstance(entry.get(key), int | float)
        ]
        if points:
            curves[statistic][_stage(part_of(layer))][layer] = points
    ordered = [*(s for s in STATISTICS if s in curves), *(s for s in curves if s not in STATISTICS)]
    return {s: {stage: dict(v) for stage, v in curves[s].items()} for s in ordered}


def _stage(part: str) -> str:
    return part.removeprefix("backbone ")


def _place(key: str) -> tuple:
    """A sort key for layers: parts in the order data flows, numbers in names as numbers."""
    words = re.split(r"(\d+)", key)
    return TITLES.index(part_of(key)), [int(w) if i % 2 else w for i, w in enumerate(words)]


def _is_norms(key: str) -> bool:
    """Whether a scalar is a layer's. Losses and APs have no dotted name before their one slash."""
    return key.count("/") == 1 and "." in key.partition("/")[0]


def write_norm_page(folder: Path) -> Path:
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
    seen = {stage for by_stage in curves.values() for stage in by_stage}
    stages = [stage for stage in map(_stage, TITLES) if stage in seen]
    drawn = io.BytesIO()
    draw_training(curves, stages, drawn)
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
            page.table(["stage", *curves], _last(curves, stages)),
            page.heading("What they are"),
            *(page.paragraph(f"{s}: {STATISTICS.get(s, _OWN)}.") for s in curves),
        ],
    )
    file = folder / "norms.html"
    with atomic_file(file) as opened:
        opened.write(document.encode())
    return file


def _last(curves: Curves, stages: Sequence[str]) -> list[list[str]]:
    """A row for each stage: medians over its layers of the last values."""

    def cell(layers: Mapping[str, Sequence[tuple[int, float]]] | None) -> str:
        return f"{median(points[-1][1] for points in layers.values()):.3f}" if layers else "-"

    return [[stage, *(cell(part.get(stage)) for part in curves.values())] for stage in stages]
