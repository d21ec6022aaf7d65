"""Training runs beside each other in one terminal: each one's lines under its name, a bar each."""

import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from normdet.engine.history import steps_logged
from normdet.engine.launch import Interrupted
from normdet.errors import NormdetError
from normdet.lab.child import ask_to_end, interruptible, start

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A run to start.

    Attributes:
        name: shown before each line of its output.
        command: its words; it saves and ends at SIGTERM.
        metrics: the file that it logs its steps in.
        steps: of the whole run.
    """

    name: str
    command: tuple[str, ...]
    metrics: Path
    steps: int


def run_all(
    jobs: Sequence[Job], at_once: int, env: Mapping[str, str], console: Console | None = None
) -> None:
    """Run every job, `at_once` of them at a time, with `env` added to the environment.

    Raises:
        NormdetError: a run failed; the others have saved.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; all have saved.
    """
    console = console or Console(highlight=False)
    waiting, running = list(jobs), []
    try:
        with interruptible(), _bars(console) as bars:
            try:
                while waiting or running:
                    while waiting and len(running) < at_once:
                        running.append(_Running(waiting.pop(0), env, console, bars))
                    running = [run for run in running if not run.ended(_LOOK_SECONDS)]
            finally:
                _end(running)
    except Interrupted as interrupt:
        raise Interrupted(
            f"{interrupt}; the runs are saved where they stood, and the same command goes on",
            interrupt.signal,
        ) from None


class _Running:
    """A job's process, its bar, and a thread that prints its lines."""

    def __init__(self, job: Job, env: Mapping[str, str], console: Console, bars: Progress):
        self._job, self._bars = job, bars
        self._bar = bars.add_task(job.name, total=job.steps)
        self.process = start(job.command, subprocess.PIPE, {"PYTHONUNBUFFERED": "1", **env})
        self._relay = threading.Thread(target=self._print, args=(console,), daemon=True)
        self._relay.start()

    def _print(self, console: Console) -> None:
        for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            console.print(f"{self._job.name}: {text}", markup=False, soft_wrap=True)

    def ended(self, seconds: float) -> bool:
        """Whether it ends well within some seconds.

        Raises:
            NormdetError: it failed.
        """
        self._bars.update(
            self._bar, completed=min(steps_logged(self._job.metrics), self._job.steps)
        )
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.close()
        if code:
            raise NormdetError(f"{self._job.name}: its run ended with code {code}; see its lines")
        return True

    def close(self) -> None:
        """Wait for the process's end and print its last lines."""
        self.process.wait()
        self._relay.join()
        self.process.stdout.close()


def _end(running: Sequence[_Running]) -> None:
    """Ask all to save and end, and wait for them."""
    for run in running:
        ask_to_end(run.process)
    for run in running:
        run.close()


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
