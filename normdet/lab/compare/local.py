"""The scheduler of one machine. It runs as many cells at once as slots and memory allow."""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from normdet.files.memory import available_memory, held_memory
from normdet.lab.compare.cell import Task, run_cell
from normdet.lab.compare.runs import Run

# Seconds between two looks at the memory of a cell that runs.
_LOOK_SECONDS = 5.0
# A cell may need this many times the memory of the largest earlier cell of its kind.
HEADROOM = 1.15


@dataclass
class _Process:
    """A cell that runs: its process's id (0 before it starts), its start, the last look at it."""

    pid: int = 0
    begun: float = field(default_factory=time.time)
    looked: float = float("-inf")


class LocalPool:
    """Runs cells as processes of this machine.

    The memory of a cell is not known beforehand. So the first one runs alone until it has logged
    its first steps. From then on another starts if enough memory is free for the largest cell of
    its norm and batch size so far, after subtracting what running cells may still take. One cell
    always runs.

    Args:
        slots: the environment of each place to run in; their number is the most at once.
        available: returns the free memory in MB, or None if it is not known.
    """

    def __init__(
        self, slots: Sequence[dict[str, str]], available: Callable[[], float | None] | None = None
    ):
        self._free = list(slots)
        self._available = available or available_memory
        self._waiting: list[Task] = []
        self._running: dict[Task, _Process] = {}
        self._threads: list[threading.Thread] = []
        self._ended: queue.SimpleQueue = queue.SimpleQueue()
        self._stop = threading.Event()
        self._peaks: dict[tuple[str, int], float] = {}

    def learn(self, norm: str, batch_size: int, memory: float) -> None:
        """Note the MB of memory that a cell of this norm and batch size used."""
        key = norm, batch_size
        self._peaks[key] = max(self._peaks.get(key, 0), memory)

    def submit(self, task: Task) -> None:
        """Run a task when there is room; tasks start in the order given."""
        self._waiting.append(task)

    @property
    def running(self) -> list[Task]:
        """The tasks that run now."""
        return list(self._running)

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running or self._waiting)

    def wait(self, seconds: float) -> list[tuple[Task, Run | None]]:
        """Start tasks if there is room, and return the runs that end within some seconds.

        Raises:
            Exception: raised by a cell's thread: a bug, or a full disk.
        """
        self._watch()
        while self._waiting and self._free and self._fits(self._waiting[0]):
            self._start(self._waiting.pop(0))
        ended = []
        try:
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        for task, slot, outcome in ended:
            del self._running[task]
            self._free.append(slot)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome and outcome.memory_mb:
                self.learn(*_kind(task), outcome.memory_mb)
        return [(task, outcome) for task, _, outcome in ended]

    def close(self) -> None:
        """Ask all running cells to save and end, and wait for them."""
        self._waiting.clear()
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _start(self, task: Task) -> None:
        slot = self._free.pop(0)
        process = self._running[task] = _Process()

        def work() -> None:
            try:
                outcome = run_cell(task, slot, started, self._stop.is_set)
            except BaseException as error:
                outcome = error
            self._ended.put((task, slot, outcome))

        def started(pid: int) -> None:
            process.pid = pid

        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        """Learn from cells that have taken their first steps."""
        now = time.monotonic()
        for task, process in self._running.items():
            if now < process.looked + _LOOK_SECONDS:
                continue
            if process.pid and _logged_since(task, process.begun):
                process.looked = now
                self.learn(*_kind(task), held_memory(process.pid))

    def expected(self, task: Task) -> float | None:
        """The memory that a cell may need, by its kind, or by other norms at the nearest size."""
        norm, size = _kind(task)
        if (norm, size) in self._peaks or not self._peaks:
            return self._peaks.get((norm, size))
        sizes = [known for _, known in self._peaks]
        nearest = min((known for known in sizes if known >= size), default=max(sizes))
        most = max(peak for (_, known), peak in self._peaks.items() if known == nearest)
        return most * max(1.0, size / nearest)

    def _fits(self, task: Task) -> bool:
        available = self._available()
        if not self._running or available is None:
            return True
        need = self.expected(task)
        if need is None:
            return False
        for other, process in self._running.items():
            available -= max(0.0, (self.expected(other) or 0.0) - held_memory(process.pid))
        return available >= HEADROOM * need


def _kind(task: Task) -> tuple[str, int]:
    return task.run.norm, task.run.batch_size


def _logged_since(task: Task, begun: float) -> bool:
    """Whether a cell has logged steps in this run, not only in the one it resumes."""
    try:
        return (task.folder / "metrics.json").stat().st_mtime > begun
    except OSError:
        return False


def slots(jobs: int, gpus: Sequence[str], share: float, threads: int) -> list[dict[str, str]]:
    """The environment of each place to run in.

    Args:
        jobs: the most places.
        gpus: ids of the GPUs to spread over; none on a CPU.
        share: of a GPU that each run gets.
        threads: of the CPU for each run.
    """
    places = [{"OMP_NUM_THREADS": str(threads)} for _ in range(jobs)]
    if gpus:
        each = max(1, int(1 / share + 1e-9))
        spread = [gpu for _ in range(each) for gpu in gpus]
        pairs = zip(places, spread, strict=False)
        places = [{**place, "CUDA_VISIBLE_DEVICES": gpu} for place, gpu in pairs]
    return places


def visible_gpus() -> list[str]:
    """The ids of the GPUs that this process may use."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return chosen.split(",")[:count] if chosen else [str(index) for index in range(count)]


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
