"""One cell of the grid: a training process, and the :class:`.runs.Run` that it results in.

A cell writes `run.json` last, whole or not at all. So a kill at any moment leaves a cell that is
done or one that `normdet train --resume` can continue.
"""

import contextlib
import datetime
import json
import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from normdet.engine.history import read_history
from normdet.engine.step import NonFiniteLoss
from normdet.errors import NormdetError
from normdet.files.lock import hold
from normdet.files.memory import held_memory
from normdet.lab import child
from normdet.lab.compare.provenance import provenance
from normdet.lab.compare.runs import CRASHED, DIVERGED, DONE, METRICS, TASKS, Run, write_run

# The least seconds between two measurements of a run's memory; a new run is measured more often.
_LOOK_SECONDS = 0.5
# A measurement walks all pages of the run. This share of a core is the most that it may take.
_LOOK_SHARE = 0.02


@dataclass(frozen=True)
class Task:
    """The description of a cell for a scheduler.

    Attributes:
        title: its name for people.
        folder: for its log, metrics and result.
        command: trains and evaluates there, or resumes, and writes `results.json`.
        run: the values known before the run.
        keep: whether checkpoints stay when it is done.
        cwd: the folder for relative paths in the command.
    """

    title: str
    folder: Path
    command: tuple[str, ...]
    run: Run = field(compare=False)
    keep: bool = False
    cwd: str = field(default_factory=os.getcwd)

    @property
    def result_file(self) -> Path:
        """The file of the run's result."""
        return self.folder / "run.json"

    @property
    def start_file(self) -> Path:
        """The file of the values known before the run, so that no other config resumes it."""
        return self.folder / "cell.json"

    @property
    def log(self) -> Path:
        """The file of the process's output."""
        return self.folder / "output.txt"


def run_cell(
    task: Task, env: Mapping[str, str] | None = None, started: Callable[[int], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Run | None:  # fmt: skip
    """Run a cell to its end; write and return its result.

    If a process of an earlier command still runs this cell, wait for it.

    Args:
        env: added to the environment.
        started: called with the process's id.
        stopping: called now and then; once it returns True, the process is asked to save and end.

    Returns:
        The run, with its `status`; None if it was stopped.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    with _sole_owner(task.folder / ".lock", stopping) as lock, task.log.open("ab") as log:
        if stopping():
            return None
        write_run(task.run, task.start_file)
        begun = time.monotonic()
        process = child.start(task.command, log, env, task.cwd, lock)
        if started:
            started(process.pid)
        code, memory = _wait(process, stopping)
    if code != 0 and stopping():
        return None
    run = _ended(task, code, memory, time.monotonic() - begun)
    write_run(run, task.result_file)
    if run.finished and not task.keep:
        for path in (*task.folder.glob("model_*.pth"), task.folder / "last_checkpoint"):
            path.unlink(missing_ok=True)
    return run


@contextlib.contextmanager
def _sole_owner(path: Path, stopping: Callable[[], bool]) -> Iterator[int]:
    """Lock the cell. The training process inherits the lock, in case we are killed first."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not stopping() and not hold(lock):
            time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)


def _wait(process: subprocess.Popen, stopping: Callable[[], bool]) -> tuple[int, float]:
    """The exit code, and the highest measured MB of the process with its children."""
    asked = False
    peak, look, begun = 0.0, 0.0, time.monotonic()
    try:
        while True:
            code = process.poll()
            if code is not None:
                return code, peak
            now = time.monotonic()
            if now >= look:
                peak = max(peak, held_memory(process.pid))
                cost = time.monotonic() - now
                look = now + max(cost / _LOOK_SHARE, min(_LOOK_SECONDS, (now - begun) / 10))
            if stopping() and not asked:
                asked = True
                child.ask_to_end(process)
            time.sleep(0.05)
    except BaseException:  # raised in a worker of Ray that is cancelled
        child.end(process)
        raise


def _ended(task: Task, code: int, memory: float, seconds: float) -> Run:
    """The run whose process has ended with this exit code."""
    log = task.folder / "log.txt"
    text = log.read_text(errors="replace") if log.is_file() else ""
    run = replace(
        task.run,
        **_cost(task.folder, text),
        **provenance(text),
        memory_mb=round(memory),
        wall_s=round(seconds, 1),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    )
    file = task.folder / "results.json"
    if code != 0 or not file.is_file():
        status = DIVERGED if code == NonFiniteLoss.exit_code else CRASHED
        return replace(run, status=status, note=_last_words(task.log, code))
    measured = json.loads(file.read_text())
    scores = {
        f"{name}_{metric}": measured[key].get(metric)
        for name, key in TASKS.items()
        if key in measured
        for metric in METRICS
    }
    known = {column: score for column, score in scores.items() if score is not None}
    nothing = any(key in measured and measured[key].get("AP") is None for key in TASKS.values())
    note = "the test images have no object to find" if nothing else ""
    return replace(run, status=DONE, scores=known, note=note)


def _last_words(log: Path, code: int) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    words = lines[-1].removeprefix("normdet: error: ") if lines else "it said nothing"
    if code < 0:
        name = signal.Signals(-code).name
        words = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    elif code == 0:
        words = "it ended well but measured nothing"
    return words[:300]


def _cost(folder: Path, log: str) -> dict:
    """Seconds per step and of training, and the GPU's memory if any, from the run's log."""
    cost: dict[str, float] = {}
    # A kill can cut a line short; the AP does not depend on it.
    with contextlib.suppress(NormdetError):
        entries = read_history(folder / "metrics.json")
        times = [entry["time"] for entry in entries if "time" in entry]
        if times:
            cost["step_s"] = round(statistics.median(times), 4)
            cost["train_s"] = round(statistics.fmean(times) * (entries[-1]["iteration"] + 1), 1)
    if peaks := re.findall(r"max_mem: (\d+)M", log):
        cost["gpu_memory_mb"] = max(map(int, peaks))
    return cost
