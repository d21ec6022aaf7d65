"""A report's pictures of single runs: curves, and images on which two norms disagree."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from normdet.engine.history import read_history
from normdet.errors import NormdetError
from normdet.lab.compare.analysis import Group
from normdet.lab.compare.runs import TASKS, Run
from normdet.lab.report import figures
from normdet.lab.report.runs import DRAWN_SCORE, predictions, scene

# The number of images that are searched for differences, and of those shown.
LOOKED_AT, SHOWN = 200, 3
CAPTION = (
    "{0} and {1} are furthest apart in their means at the smallest batch size. Shown are the test "
    f"images (of the first {LOOKED_AT}) on which one seed's models differ most in the share of "
    f"objects they find with a score of {DRAWN_SCORE} or more: chosen for their difference, not "
    "typical."
)


def curve(folder: Path, run: Run, metric: str) -> figures.Curve | None:
    """Loss and AP of a run over the images it has seen; None if no log can be read."""
    task, name = metric.split("_", 1)
    key = f"{TASKS[task]}/{name}"
    try:
        entries = read_history(folder / "metrics.json")
    except NormdetError:
        return None

    def points(column: str) -> list[tuple[float, float]]:
        seen = ((entry, (entry["iteration"] + 1) * run.batch_size) for entry in entries)
        return [(images, entry[column]) for entry, images in seen if column in entry]

    return figures.Curve(run.norm, points("total_loss"), points(key))


def far_apart(groups: Sequence[Group]) -> tuple[Group, Group] | None:
    """The two norms whose means differ most, at the smallest batch size with two norms."""
    for size in sorted({group.batch_size for group in groups}):
        pairs = [
            (a, b)
            for a, b in combinations(groups, 2)
            if a.batch_size == b.batch_size == size and set(a.values) & set(b.values)
        ]
        if pairs:
            return max(pairs, key=lambda p: abs(p[0].estimate.mean - p[1].estimate.mean))
    return None


def draw_differences(folders: Mapping[str, Path], records: Sequence[Mapping], path: Path) -> bool:
    """Draw the images on which two runs differ most; return False if there are none.

    Args:
        folders: the two runs', by name.
        records: of the test set.
        path: the PNG.
    """
    try:
        predicted = {name: predictions(folder) for name, folder in folders.items()}
        if len(predicted) < 2 or not records:
            return False
        # Take one scene at a time, because the masks of all would fill the memory.
        score = [_disagreement(scene(record, predicted)) for record in records[:LOOKED_AT]]
        ranked = sorted(range(len(score)), key=lambda index: -score[index])
        scenes = [scene(records[index], predicted) for index in ranked[:SHOWN]]
    except (OSError, ValueError, KeyError):  # data was moved, or predictions were not kept
        return False
    figures.draw_scenes(scenes, {name: name for name in folders}, path)
    return True


def _disagreement(one: figures.Scene) -> float:
    scores = []
    for masks in one.predicted.values():
        found, covered = figures.match(one.truth, masks)
        total = len(found) + len(covered)
        scores.append(2 * found.sum() / total if total else 1.0)
    return abs(scores[0] - scores[1])
