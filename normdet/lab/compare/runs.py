"""The runs of a comparison, one row each, and the place of each fact about them.

In the folder of a comparison, these are the sources:

- `cells/NAME/run.json` describes a run that ended; the run writes it once, at its end;
- `cells/NAME/cell.json` describes a run that has begun, so that no other config resumes it;
- `config.yaml` and `plan.json` describe what all runs share (:mod:`.folder`).

`runs.csv`, the figures and both reports are made from these and never read back by `compare`; the
tables of the site read a `runs.csv` that was committed without its cells. :class:`Run` is the row
in memory, in JSON and in CSV. Folders and tables of earlier versions load: columns that are missing
keep their defaults, and columns that are unknown are dropped.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from normdet.errors import NormdetError
from normdet.files.atomic import atomic_file

DONE, DIVERGED, CRASHED = "done", "diverged", "crashed"
# A run with one of these is finished; the next command tries a crashed one again.
RESULTS = (DONE, DIVERGED)
TEST, TUNING = "test", "tuning"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# A kind of AP, and its name in `results.json` and `metrics.json`.
TASKS = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}
AP_COLUMNS = tuple(f"{task}_{metric}" for task in TASKS for metric in METRICS)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its settings, and its results once it has ended.

    Attributes:
        name: of its folder; the column `run`.
        dataset: the one it was measured on.
        norm: the name of the arm.
        batch_size: images per step.
        seed: of its start values, batches and augmentations.
        init: the weights it started from, or `random`.
        option: the norm option.
        role: `test` for runs that are reported, `tuning` for those that pick rates.
        status: `done`, `diverged`, `crashed`, or `""` before its end.
        scores: AP in percent by column of `AP_COLUMNS`; one that was not measured is absent.
        lr: the learning rate, and `lr_factor` its multiple of the linear rule's.
        iterations: optimizer steps; `images_seen` is that times the batch size.
        config_hash: of everything that decides the outcome but the seed.
        commit: of normdet's checkout.
        step_s: median seconds of a step; `train_s` of all steps, `wall_s` of the whole process.
        memory_mb: the peak of its processes; `gpu_memory_mb` on the GPU.
        versions: of its packages.
        machine: the one it ran on.
        date: of its end, UTC.
        note: why there is no result, from the end of the run's log.
    """

    name: str
    dataset: str = ""
    norm: str = ""
    batch_size: int = 1
    seed: int = 0
    init: str = ""
    option: str = ""
    role: str = TEST
    status: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    lr: float | None = None
    lr_factor: float = 1.0
    iterations: int | None = None
    images_seen: int | None = None
    config_hash: str = ""
    commit: str = ""
    step_s: float | None = None
    train_s: float | None = None
    wall_s: float | None = None
    memory_mb: int | None = None
    gpu_memory_mb: int | None = None
    versions: str = ""
    machine: str = ""
    date: str = ""
    note: str = ""

    @property
    def finished(self) -> bool:
        """Whether it has a result, and need not run again."""
        return self.status in RESULTS

    @property
    def key(self) -> tuple[str, int, int]:
        """Norm, batch size and seed."""
        return self.norm, self.batch_size, self.seed

    def score(self, metric: str) -> float | None:
        """AP in percent by its column's name; None if it was not measured."""
        return self.scores.get(metric)

    def to_row(self) -> dict[str, Any]:
        """Values by column, in the order of `COLUMNS`, without unknown ones."""
        row = {column: self.scores.get(column) for column in AP_COLUMNS}
        row |= {column: getattr(self, name) for column, name in _FIELDS.items()}
        return {column: row[column] for column in COLUMNS if row[column] is not None}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Run":
        """The run of a row, whose values are text (CSV) or typed (JSON).

        Raises:
            ValueError: the row names no run, or a number in it is none.
        """
        known = {column: value for column, value in row.items() if value not in (None, "")}
        if "run" not in known:
            raise ValueError("it names no run")
        scores = {c: _number(float, known[c]) for c in AP_COLUMNS if c in known}
        values = {n: _number(_KINDS[n], known[c]) for c, n in _FIELDS.items() if c in known}
        return cls(**values, scores=scores)


def _number(kind: type, value: Any) -> Any:
    try:
        return kind(value)
    except TypeError as error:
        raise ValueError(f"{value!r} is no {kind.__name__}") from error


def _kind(hint: Any) -> type:
    """The type of a field, without None."""
    return next(iter(get_args(hint)), hint)


_HINTS = get_type_hints(Run)
# Column -> field.
_FIELDS = {"run" if f.name == "name" else f.name: f.name for f in fields(Run) if f.name != "scores"}
_KINDS = {name: _kind(_HINTS[name]) for name in _FIELDS.values()}
_SCORES_AT = [f.name for f in fields(Run)].index("scores")
COLUMNS = (*list(_FIELDS)[:_SCORES_AT], *AP_COLUMNS, *list(_FIELDS)[_SCORES_AT:])


def read_run(file: Path) -> Run | None:
    """The run of a `run.json` or `cell.json`; None if there is no such file.

    Raises:
        NormdetError: the file does not describe a run.
    """
    try:
        row = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise NormdetError(f"{file} cannot be read ({error}): remove it to run it again") from error
    try:
        if not isinstance(row, dict) or "config_hash" not in row:
            raise ValueError("it has no config_hash")
        return Run.from_row(row)
    except ValueError as error:
        raise NormdetError(
            f"{file} is not the row of a run ({error}): remove it to run it again"
        ) from error


def write_run(run: Run, file: Path) -> None:
    """Write the row as JSON, whole or not at all."""
    with atomic_file(file) as opened:
        opened.write(json.dumps(run.to_row(), indent=1).encode() + b"\n")


class Runs:
    """All runs in the folder of a comparison that have ended, by name.

    The files are read once; :meth:`add` adds a run that ends later. The folder's lock keeps other
    commands out meanwhile.

    Args:
        out: the comparison's folder.

    Raises:
        NormdetError: a file does not describe a run.
    """

    def __init__(self, out: Path):
        self._table = out / "runs.csv"
        self._runs: dict[str, Run] = {}
        for file in sorted((out / "cells").glob("*/run.json")):
            if run := read_run(file):
                self._runs[file.parent.name] = run

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def get(self, name: str) -> Run | None:
        """The run of this name; None if it has not ended."""
        return self._runs.get(name)

    def add(self, run: Run) -> None:
        """Add a run that has just ended, and write `runs.csv` again from memory."""
        self._runs[run.name] = run
        self.write_table()

    def write_table(self) -> None:
        """Write `runs.csv`, by norm, batch size, role and seed."""
        order = ("norm", "batch_size", "role", "seed", "lr_factor")
        runs = sorted(self, key=lambda run: tuple(getattr(run, name) for name in order))
        write_table(runs, self._table)


def write_table(runs: Iterable[Run], path: Path) -> None:
    """Write a `runs.csv`, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    for run in runs:
        writer.writerow({column: _text(column, v) for column, v in run.to_row().items()})
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def _text(column: str, value: object) -> object:
    return f"{value:.3f}" if column in AP_COLUMNS else value


def read_table(path: Path) -> list[Run]:
    """The runs of a `runs.csv`.

    Raises:
        NormdetError: the file is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise NormdetError(f"{path} has no column {', '.join(sorted(missing))}")
            return [Run.from_row(row) for row in reader]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, NormdetError):
            raise
        raise NormdetError(f"{path} is no table of runs: {error}") from error


def primary_metric(runs: Sequence[Run]) -> str:
    """The metric that is tested: mask AP if there are masks, or else keypoint or box AP."""
    for metric in ("mask_AP", "keypoint_AP"):
        if any(run.score(metric) is not None for run in runs):
            return metric
    return "box_AP"
