"""The display of a running comparison: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from normdet.engine.history import steps_logged
from normdet.lab.compare.cell import Task
from normdet.lab.compare.runs import CRASHED, DIVERGED, Run


class Display:
    """Shows the progress of the runs, and an estimate of the time left.

    Args:
        console: if it is a terminal it gets the table.
        total: the number of all runs, with those that are not known yet.
    """

    def __init__(self, console: Console, total: int):
        self._console = console
        self._total = total
        self._runs: dict[str, Run | None] = {}
        self._grid: dict[str, Task] = {}
        self._begun = time.monotonic()
        self._before = 0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error) -> None:
        if self._live:
            self._live.stop()

    def add(self, tasks: Sequence[Task], finished: dict[str, Run]) -> None:
        """Add tasks, with the runs of those that were finished before."""
        for task in tasks:
            name = task.folder.name
            self._grid[name] = task
            self._runs[name] = finished.get(name)
            self._before += self._runs[name] is not None

    def ended(self, task: Task, run: Run) -> None:
        """Show a run's result."""
        self._runs[task.folder.name] = run
        text = f"[{self._done}/{self._total}] {task.title}: {outcome(run)}"
        if run.status == CRASHED:
            text += f"; its log is {task.log}"
        left = self._left(())
        text += f"; about {duration(left)} left" if left else ""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def refresh(self, running: Sequence[Task]) -> None:
        """Draw the table anew."""
        if self._live:
            self._live.update(self._table(running), refresh=True)

    @property
    def _done(self) -> int:
        return sum(run is not None for run in self._runs.values())

    def _table(self, running: Sequence[Task]) -> Table:
        left = self._left(running)
        title = f"{self._done} of {self._total} runs"
        table = Table(title=f"{title}, about {duration(left)} left" if left else title)
        lines: dict[tuple, list[str]] = {}
        active = {task.folder.name: progress(task) for task in running}
        columns: list[str] = []
        for name, task in self._grid.items():
            column = f"{task.run.batch_size} / batch"
            if column not in columns:
                columns.append(column)
            cell = lines.setdefault((task.run.norm, column), [])
            run = self._runs[name]
            if run is not None:
                cell.append(outcome(run, short=True))
            elif name in active:
                cell.append(f"{active[name]:.0%}")
            else:
                cell.append("·")
        table.add_column("norm")
        for column in columns:
            table.add_column(column)
        for norm in dict.fromkeys(norm for norm, _ in lines):
            cells = (" ".join(lines.get((norm, column), [])) for column in columns)
            table.add_row(Text(norm), *cells)
        return table

    def _left(self, running: Sequence[Task]) -> float | None:
        """The seconds left, at the pace of this command so far."""
        done = self._done + sum(progress(task) for task in running)
        paced = done - self._before
        spent = time.monotonic() - self._begun
        if paced <= 0.05 or done >= self._total:
            return None
        return spent * (self._total - done) / paced


def outcome(run: Run, short: bool = False) -> str:
    """A run's result in a few words."""
    if run.status == DIVERGED:
        return "div" if short else f"diverged ({run.note})"
    if run.status == CRASHED:
        return "crash" if short else f"crashed ({run.note})"
    values = {name: run.score(f"{name}_AP") for name in ("mask", "keypoint", "box")}
    known = [(name, value) for name, value in values.items() if value is not None]
    if short:
        return f"{known[0][1]:.1f}" if known else "done"
    return ", ".join(f"{name} AP {value:.1f}" for name, value in known) or "done"


def progress(task: Task) -> float:
    """The share of steps that a running cell has logged."""
    total = task.run.iterations or 0
    steps = steps_logged(task.folder / "metrics.json")
    return min(1.0, steps / total) if total else 0.0


def duration(seconds: float) -> str:
    """`3 min` or `2 h 05 min`."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
