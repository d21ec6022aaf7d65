"""`report.html` and `report.md` of a comparison, with an interval for every mean."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from detectron2.data import DatasetCatalog

from normdet.config import load_config
from normdet.data import register_datasets
from normdet.errors import NormdetError
from normdet.files import page
from normdet.files.atomic import atomic_file
from normdet.files.words import listed
from normdet.lab.compare import analysis, pictures
from normdet.lab.compare.analysis import Choice, Contrast, Group
from normdet.lab.compare.plan import Plan
from normdet.lab.compare.runs import CRASHED, DIVERGED, DONE, TEST, TUNING, Run, primary_metric
from normdet.lab.compare.stats import Estimate, least_errors, signed
from normdet.lab.report import figures, markdown
from normdet.option_text import FROZEN, words_of

_METHOD = (
    "Runs of one seed see the same images in the same order whatever their norm, so norms are "
    "compared seed by seed. Intervals are Student's t over seeds at 95%, p-values those of the "
    "paired t-test; both suppose that differences between seeds are normal, which few seeds cannot "
    "check. No permutation test stands beside them: with 3 seeds its smallest p-value is 0.25, "
    "with 5 it is 0.0625. The intervals tell what another seed would change on this very test set, "
    "not what other images would."
)
_FAMILY = (
    "Holm's adjustment covers all rows of this table, one family, with those that are planned and "
    "not there yet: where no norm differs from the baseline, one such table of twenty calls any of "
    "them a difference. The intervals are each its own, not adjusted. Other metrics are not tested."
)
_SCALING = (
    "Every run saw the same number of images, to within one batch. The rate goes with the batch "
    "size (the linear rule), iterations, steps, warm-up and periods against it; the momentum m of "
    "running averages becomes 1-(1-m)^k at k times the config's batch size, so that they average "
    "over the same number of images. The last checkpoint is what is measured, whatever the curve."
)


def write_report(
    out: Path, runs: Sequence[Run], *, baseline: str, metric: str | None = None,
    command: str = "", plan: Plan | None = None,
) -> None:  # fmt: skip
    """Write `report.html`, `report.md` and `figures/` from the runs.

    Args:
        out: the comparison's folder; curves and predictions are read from its `cells/`.
        runs: those that are reported and those that picked rates.
        baseline: the norm that the others are compared with.
        metric: the column that is tested; by default
            :func:`normdet.lab.compare.runs.primary_metric`.
        command: the command that made it.
        plan: of the runs; without it there are no pictures of predictions.

    Raises:
        NormdetError: the metric was not measured.
    """
    metric = metric or primary_metric(runs)
    done = [run for run in runs if run.status == DONE]
    if done and all(run.score(metric) is None for run in done):
        raise NormdetError(f"--metric {metric} is in none of the runs")
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    report = _Report(out, runs, metric, baseline, command, plan)
    report.draw(folder)
    for form, name in ((page, "report.html"), (markdown, "report.md")):
        with atomic_file(out / name) as file:
            file.write(report.text(form).encode())


class _Report:
    def __init__(self, out, runs, metric, baseline, command, plan):
        self._out = out
        self._runs = list(runs)
        self._tested = [run for run in runs if run.role == TEST]
        self._metric = metric
        self._label = metric.replace("_", " ")
        self._baseline = baseline
        self._command = command
        self._plan = plan
        self._groups = analysis.groups(self._tested, metric, plan.tested if plan else ())
        self._figures: dict[str, tuple[Path, str]] = {}
        self._earlier: set[str] = set()

    def draw(self, folder: Path) -> None:
        """Write the pictures for which runs have data; other pictures stay as they are."""
        self._draw(folder, "ap", f"{self._label} over the batch size", self._draw_ap)
        self._draw(folder, "training", "training over the images seen", self._draw_training)
        self._draw(folder, "cost", "time and memory over the batch size", self._draw_cost)
        self._draw(folder, "predictions", "predictions of two norms", self._draw_predictions)

    def _draw(self, folder: Path, name: str, text: str, draw: Callable[[Path], bool]) -> None:
        path = folder / f"{name}.png"
        drawn = draw(path)
        if drawn or path.exists():
            self._figures[name] = path, text
        if not drawn:
            self._earlier.add(name)

    def _draw_ap(self, path: Path) -> bool:
        series: dict[str, list] = {}
        for group in self._groups:
            if group.whole:
                e = group.estimate
                point = (group.batch_size, e.mean, e.low, e.high)
                series.setdefault(group.norm, []).append(point)
        if series:
            title = f"{self._label}, mean and 95% interval over seeds"
            figures.draw_over_batch([figures.Panel(title, self._label, series)], path)
        return bool(series)

    def _draw_training(self, path: Path) -> bool:
        panels: dict[str, list[figures.Curve]] = {}
        for run in self._tested:
            curve = pictures.curve(self._out / "cells" / run.name, run, self._metric)
            if curve:
                panels.setdefault(_images(run.batch_size), []).append(curve)
            # If one finished run lacks a curve, draw none: a gap would look like the norm's own.
            elif run.status == DONE:
                return False
        if panels:
            order = sorted(panels, key=lambda title: int(title.split()[0]))
            figures.draw_training({title: panels[title] for title in order}, path)
        return bool(panels)

    def _draw_cost(self, path: Path) -> bool:
        panels = []
        columns = {"step_s": ("Time of a step", "seconds"), **_memory_column(self._tested)}
        for column, (title, unit) in columns.items():
            series: dict[str, list] = {}
            for norm, size, value in self._costs(column):
                series.setdefault(norm, []).append((size, value, None, None))
            if series:
                panels.append(figures.Panel(title, unit, series, from_zero=True))
        if panels:
            figures.draw_over_batch(panels, path)
        return bool(panels)

    def _costs(self, column: str) -> list[tuple[str, int, float]]:
        found = []
        for group in self._groups:
            values = self._values(group, column)
            if values:
                found.append((group.norm, group.batch_size, statistics.median(values)))
        return found

    def _values(self, group: Group, column: str) -> list[float]:
        found = (getattr(run, column) for run in self._of(group) if run.status == DONE)
        return [value for value in found if value]

    def _of(self, group: Group) -> list[Run]:
        key = group.norm, group.batch_size
        return [run for run in self._tested if (run.norm, run.batch_size) == key]

    def _draw_predictions(self, path: Path) -> bool:
        pair = pictures.far_apart(self._groups)
        if self._plan is None or pair is None:
            return False
        seed = min(set(pair[0].values) & set(pair[1].values))
        runs = [run for group in pair for run in self._of(group) if run.seed == seed]
        folders = {run.norm: self._out / "cells" / run.name for run in runs}
        self._pair = pair
        return pictures.draw_differences(folders, _test_records(self._plan), path)

    def text(self, form: ModuleType) -> str:
        """The document; `form` writes its parts in HTML or Markdown."""
        dataset = self._tested[0].dataset if self._tested else ""
        return form.page(f"Which norm: {dataset}", list(self._parts(form)))

    def _parts(self, form: ModuleType) -> Iterable[str]:
        yield form.paragraph(self._summary())
        yield form.heading("Which norm to choose")
        yield from self._choices(form)
        yield form.heading("AP against batch size")
        yield from self._picture(form, "ap")
        yield self._means(form)
        yield form.paragraph(
            "Mean over seeds, the half width of its 95% interval, and the number of seeds n. Where "
            "a seed diverged there is no mean: one over the others would flatter.",
            note=True,
        )
        yield form.heading(f"Differences to {self._baseline}")
        yield from self._differences(form)
        if "training" in self._figures:
            yield form.heading("Training")
            yield from self._picture(form, "training")
            yield form.paragraph("A line per run; runs of one norm share a colour.", note=True)
        if "cost" in self._figures:
            yield form.heading("Time and memory")
            yield from self._picture(form, "cost")
            yield self._cost_table(form)
            yield form.paragraph(
                "Medians over seeds, without intervals: runs that shared the machine with others "
                "slowed each other, so take them for an order of size.",
                note=True,
            )
        if any(run.role == TUNING for run in self._runs):
            yield form.heading("How rates were picked")
            yield from self._rates(form)
        if "predictions" in self._figures:
            yield form.heading("Where predictions differ most")
            yield from self._picture(form, "predictions")
            if "predictions" not in self._earlier:  # an older picture may show another pair
                text = pictures.CAPTION.format(*(group.norm for group in self._pair))
                yield form.paragraph(text, note=True)
        if any(run.status in (DIVERGED, CRASHED) for run in self._runs):
            yield form.heading("Runs without a result")
            yield self._failures(form)
        yield form.heading("What the numbers mean")
        yield form.paragraph(_METHOD)
        yield form.paragraph(_SCALING)
        yield form.heading("How it was made")
        if self._command:
            yield form.commands([self._command])
        yield form.table(["what", "which"], self._provenance())

    def _summary(self) -> str:
        seeds = len({run.seed for run in self._tested})
        sizes = sorted({run.batch_size for run in self._tested})
        done = sum(run.status == DONE for run in self._tested)
        planned = len(self._plan.tested) if self._plan else len(self._tested)
        text = (
            f"{len({run.norm for run in self._tested})} norms at {listed(sizes)} images a "
            f"step, {seeds} seed{'s' if seeds > 1 else ''}: {done} of {planned} runs "
            f"ended well. Measured is {self._label} on {self._tested[0].dataset}."
        )
        if seeds == 1:
            text += (
                " With one seed there are no intervals and no tests: which of two numbers is "
                "larger says nothing of their norms."
            )
        elif seeds == 2:
            text += (
                " Two seeds give intervals of 12.7 standard errors: only gross differences can "
                "show, and where none shows there may well be one."
            )
        frozen = [run for run in self._tested if words_of(run.option)[:1] == [FROZEN]]
        if any(run.init == "random" for run in frozen):
            text += f" From random weights {FROZEN} has the statistics of no data: no norm at all."
        return text

    def _choices(self, form: ModuleType) -> Iterable[str]:
        rows = [
            [
                str(choice.batch_size),
                choice.best.norm,
                _plus_minus(choice.best.estimate),
                _sureness(choice),
                listed(f"{group.norm} ({group.lacks})" for group in choice.left_out),
            ]
            for choice in analysis.choices(self._groups)
        ]
        head = ["images", "highest mean", self._label, "how sure", "left out"]
        yield form.table(head, rows)
        yield form.paragraph(
            "All pairs of norms at a batch size are tested and adjusted together (Holm), so that "
            "the choice of the best is paid for. In brackets is the 95% interval of the best one's "
            "lead, seed by seed and not adjusted: norms that are not told apart are not thereby "
            "equal. Left out are norms with fewer seeds than another, or with one that diverged.",
            note=True,
        )

    def _means(self, form: ModuleType) -> str:
        sizes = sorted({group.batch_size for group in self._groups})
        cells = {(group.norm, group.batch_size): _mean(group) for group in self._groups}
        norms = dict.fromkeys(group.norm for group in self._groups)
        rows = [[norm, *(cells[norm, size] for size in sizes)] for norm in norms]
        return form.table(["norm", *(_images(size) for size in sizes)], rows)

    def _differences(self, form: ModuleType) -> Iterable[str]:
        found = analysis.against(self._groups, self._baseline)
        if not found:
            yield form.paragraph(
                f"None can be given: no norm has seeds in common with {self._baseline} at any "
                "batch size at which neither diverged."
            )
            return
        head = ["norm", "images", "difference", "95% interval", "n", "p", "p (Holm)", ""]
        yield form.table(head, [_difference(contrast) for contrast in found])
        text = f"{self._label}, seed by seed. {_FAMILY}{self._power(found)}"
        yield form.paragraph(text, note=True)

    def _power(self, found: Sequence[Contrast]) -> str:
        tested = [contrast for contrast in found if contrast.adjusted is not None]
        if not tested:
            return ""
        n = max(contrast.difference.estimate.n for contrast in tested)
        family = sum(group.norm != self._baseline for group in self._groups)
        return (
            f" With {n} seeds and {family} rows planned the first difference to be told apart must "
            f"be {least_errors(n, family):.1f} standard errors wide: more seeds, or fewer norms and"
            " batch sizes, make it less."
        )

    def _cost_table(self, form: ModuleType) -> str:
        columns = {"step_s": ("s a step", "{:.3g}"), "train_s": ("training, min", "{:.1f}")}
        columns |= {c: (unit, "{:.0f}") for c, (_, unit) in _memory_column(self._tested).items()}
        rows = []
        for group in self._groups:
            values = [self._values(group, column) for column in columns]
            texts = [
                form_.format(statistics.median(v) / (60 if c == "train_s" else 1)) if v else "-"
                for (c, (_, form_)), v in zip(columns.items(), values, strict=True)
            ]
            rows.append([group.norm, str(group.batch_size), *texts])
        return form.table(["norm", "images", *(name for name, _ in columns.values())], rows)

    def _rates(self, form: ModuleType) -> Iterable[str]:
        tuning = [run for run in self._runs if run.role == TUNING]
        picked = {(run.norm, run.batch_size): run.lr_factor for run in self._tested}
        factors = sorted({run.lr_factor for run in tuning})
        rows = []
        for norm, size in dict.fromkeys((run.norm, run.batch_size) for run in tuning):
            own = {
                run.lr_factor: run for run in tuning if (run.norm, run.batch_size) == (norm, size)
            }
            cells = [_tuned(own.get(factor), self._metric) for factor in factors]
            chosen = picked.get((norm, size))
            rows.append([norm, str(size), *cells, "-" if chosen is None else f"x{chosen:g}"])
        yield form.table(["norm", "images", *(f"x{f:g}" for f in factors), "picked"], rows)
        yield form.paragraph(
            f"{self._label} on {tuning[0].dataset} with a seed that is not reported, at "
            "multiples of the linear rule's rate; the same grid for every norm. Single runs: these "
            "numbers pick, and claim nothing." + _ends(picked.values(), factors),
            note=True,
        )

    def _failures(self, form: ModuleType) -> str:
        rows = [
            [run.name, run.status, run.note]
            for run in self._runs
            if run.status in (DIVERGED, CRASHED)
        ]
        return form.table(["run", "status", "what it said last"], rows)

    def _provenance(self) -> list[list[str]]:
        keys = ("versions", "machine", "commit", "init")
        rows = [
            [key, "; ".join(sorted({getattr(run, key) or "unknown" for run in self._runs}))]
            for key in keys
        ]
        hashes = {run.config_hash for run in self._runs}
        dates = sorted(run.date for run in self._runs if run.date)
        rows.append(["configs", f"{len(hashes)}, hashes in runs.csv"])
        rows.append(["dates", " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "-"])
        return rows

    def _picture(self, form: ModuleType, name: str) -> Iterable[str]:
        if name not in self._figures:
            return
        yield form.picture(*self._figures[name])
        if name in self._earlier:
            note = (
                "Drawn by an earlier report, of the runs there were then: files of some are "
                "not here any more."
            )
            yield form.paragraph(note, note=True)


def _test_records(plan: Plan) -> list[dict]:
    cfg = load_config(plan.config_file)
    try:
        register_datasets(cfg)
        return DatasetCatalog.get(plan.test)
    except (NormdetError, OSError):  # the report must not need the data
        return []


def _memory_column(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    on_gpu = any(run.gpu_memory_mb for run in runs)
    column = "gpu_memory_mb" if on_gpu else "memory_mb"
    return {column: ("Memory of the GPU" if on_gpu else "Memory of the process", "MB")}


def _mean(group: Group) -> str:
    if not group.whole:
        return group.lacks
    lacks = f", {group.lacks}" if group.lacks else ""
    return f"{_plus_minus(group.estimate)}{lacks}"


def _plus_minus(estimate: Estimate) -> str:
    if estimate.half is None:
        return f"{estimate.mean:.1f} (n = {estimate.n}, no interval)"
    return f"{estimate.mean:.1f} ± {estimate.half:.1f} (n = {estimate.n})"


def _sureness(choice: Choice) -> str:
    if not choice.rivals and not choice.beaten:
        return "nothing to compare it with"
    if choice.best.estimate.n < 2:
        return "not at all: one seed"
    if not choice.rivals:
        return f"ahead of {listed(choice.beaten)} (p < 0.05)"
    rivals = listed(f"{pair.other} ({_interval(pair)})" for pair in choice.rivals)
    beaten = f"; ahead of {listed(choice.beaten)}" if choice.beaten else ""
    return f"not told apart from {rivals}{beaten}"


def _interval(contrast: Contrast) -> str:
    estimate = contrast.difference.estimate
    return "none" if estimate.low is None else f"{signed(estimate.low)} to {signed(estimate.high)}"


def _ends(picked: Iterable[float], factors: Sequence[float]) -> str:
    """A sentence if most picked rates are at an end of the grid, so better ones may lie beyond."""
    picked = list(picked)
    at_end = sum(factor in (factors[0], factors[-1]) for factor in picked)
    if len(factors) < 3 or 2 * at_end <= len(picked):
        return ""
    return (
        f" {at_end} of {len(picked)} picks lie at an end of the grid: it is too narrow, and better "
        "rates may lie beyond it."
    )


def _difference(contrast: Contrast) -> list[str]:
    difference = contrast.difference
    e = difference.estimate
    p = "-" if difference.p is None else _p(difference.p)
    adjusted = "-" if contrast.adjusted is None else _p(contrast.adjusted)
    if contrast.adjusted is None:
        said = "not tested"
    elif contrast.significant:
        said = "better" if e.mean > 0 else "worse"
    else:
        said = "not told apart"
    return [
        contrast.norm, str(contrast.batch_size), signed(e.mean), _interval(contrast),
        str(e.n), p, adjusted, said,
    ]  # fmt: skip


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _tuned(run: Run | None, metric: str) -> str:
    if run is None or run.status != DONE:
        return "not run" if run is None else run.status
    value = run.score(metric)
    return "-" if value is None else f"{value:.1f}"


def _images(size: int) -> str:
    return f"{size} image{'s' if size > 1 else ''}"
