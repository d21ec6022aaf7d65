"""The workers of a job watch each other to find which are gone, hang or were asked to stop.

Every worker writes a sign of life and its position into the job's store each second, and reads
those of the others. If a worker is gone or stopped, a collective operation waits for minutes or
for ever and does not name the worker. The signs of life do.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from normdet.engine.launch import restarts

logger = logging.getLogger(__name__)

# Phases without a time limit, because saving or an evaluation may take any time.
START, BETWEEN, EVALUATION, DONE = "start", "between", "evaluation", "done"
# The phases of a training step.
IMAGES, STEP = "images", "step"
_DOING = {IMAGES: "waits for its images", STEP: "computes or waits for the others"}
# A dead process's own error says more than we can, so wait this long for it.
_GONE_SECONDS = 5.0


@dataclass
class Sign:
    """A worker's sign of life.

    Attributes:
        host: the name of its machine.
        pid: its process.
        phase: one of this module's phases.
        iteration: the one it is at.
        moves: grows whenever the worker makes progress.
        beat: grows as long as the process lives.
        stop: the signal that asked it to stop, or 0.
    """

    host: str
    pid: int
    phase: str = START
    iteration: int = 0
    moves: int = 0
    beat: int = 0
    stop: int = 0


class Watch:
    """Signs of life of all workers, in two threads that run until :meth:`close`.

    Args:
        store: of the job; this object's own connection to it.
        rank: of this worker.
        world: how many there are.
        limit: after this many seconds without a sign, or without progress of any worker, the job
            counts as hung; 0 for never.

    Attributes:
        on_lost: called once, in a thread, with a sentence and the ranks that answer.
        on_stop: called once, in a thread, when a worker was asked to stop while this one does
            not train, with the signal and the ranks that answer.
        on_orphaned: called in a thread when the process that started this one is gone.
    """

    on_lost: Callable[[str, list[int]], None]
    on_stop: Callable[[int, list[int]], None]
    on_orphaned: Callable[[], None]

    def __init__(self, store: dist.Store, rank: int, world: int, limit: float):
        self.rank, self.world, self.limit = rank, world, limit
        self._store = store
        self._mine = Sign(socket.gethostname(), os.getpid())
        self._parent = os.getppid()
        self._others: dict[int, Sign] = {}
        # When the beat and the moves of each worker last changed.
        self._alive: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._asked = time.monotonic()
        self._ended = threading.Event()
        self._period = min(1.0, limit / 10) if limit else 1.0
        self._told = threading.Lock()
        self._seen = -1

    def start(self) -> None:
        """Begin. Every worker must call this; none waits for another."""
        for work in (self._beat, self._judge):
            threading.Thread(target=self._repeat, args=(work,), daemon=True).start()

    def close(self) -> None:
        """End the watch, once this worker does not need the others any more."""
        self._mine.phase = DONE
        self._ended.set()
        try:
            self._write()
        except Exception:  # the store ends with the worker that holds it
            logger.debug("the store is gone")

    def at(self, phase: str, iteration: int | None = None) -> None:
        """Publish this worker's phase and iteration."""
        self._mine.phase = phase
        self._mine.moves += 1
        if iteration is not None:
            self._mine.iteration = iteration

    def ask_to_stop(self, number: int) -> None:
        """Tell all workers that this one was asked to stop by a signal."""
        self._mine.stop = int(number)

    def claim(self, patience: float = 60.0) -> None:
        """Leave the end of the job to the calling thread.

        If the watch's own thread ends it already, that ends the process; wait for it so long.
        """
        self._told.acquire(timeout=patience)

    def gone(self, patience: float = 5.0) -> str:
        """Say which workers are gone after a collective operation has failed.

        Waits up to `patience` seconds for a sign of each worker; returns `""` if all give one.
        """
        begun = time.monotonic()
        while time.monotonic() - begun < patience:
            if told := self._words(lambda rank, sign: _state(sign) == "gone"):
                return told
            time.sleep(0.2)
        silent = self._words(lambda rank, sign: self._alive.get(rank, 0) < begun)
        return silent

    def _words(self, is_lost: Callable[[int, Sign], bool]) -> str:
        lost = [
            self._name(rank, sign) + f", {_why(sign)}"
            for rank, sign in sorted(self._others.items())
            if sign.phase != DONE and is_lost(rank, sign)
        ]
        return " and ".join(lost)

    def _name(self, rank: int, sign: Sign) -> str:
        return f"rank {rank} (process {sign.pid} of {sign.host})"

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._ended.wait(self._period):
            try:
                work()
            except Exception as error:  # the store is gone; what that means shows later
                logger.debug("watch: %s", error)

    def _key(self, rank: int) -> str:
        # The restarted workers of an elastic job use the same store.
        return f"normdet/{restarts()}/{rank}"

    def _write(self) -> None:
        self._store.set(self._key(self.rank), json.dumps(asdict(self._mine)))

    def _beat(self) -> None:
        self._mine.beat += 1
        if os.getppid() != self._parent and not self._mine.stop:  # our launcher was killed
            self.ask_to_stop(signal.SIGTERM)
            self.on_orphaned()
        self._write()
        for rank in range(self.world):
            if rank != self.rank and self._store.check([self._key(rank)]):
                self._take(rank, Sign(**json.loads(self._store.get(self._key(rank)))))
        self._asked = time.monotonic()
        asked = [s.stop for s in (self._mine, *self._others.values()) if s.stop]
        if asked and self._mine.phase in (START, EVALUATION) and self._told.acquire(blocking=False):
            self._ended.set()
            self.on_stop(asked[0], self._answering())

    def _take(self, rank: int, sign: Sign) -> None:
        before, now = self._others.get(rank), time.monotonic()
        if before is None or sign.beat != before.beat or sign.phase == DONE:
            self._alive[rank] = now
        if before is None or sign.moves != before.moves:
            self._moved[rank] = now
        self._others[rank] = sign

    def _judge(self) -> None:
        sentence = self._lost() or (self._stuck() if self.limit else "")
        if sentence and self._told.acquire(blocking=False):
            self._ended.set()
            self.on_lost(sentence, self._answering())

    def _answering(self) -> list[int]:
        now = time.monotonic()
        fresh = [r for r, seen in self._alive.items() if now - seen < max(5 * self._period, 3)]
        return sorted([self.rank, *fresh])

    def _lost(self) -> str:
        now = time.monotonic()
        for rank, sign in sorted(self._others.items()):
            silent = now - self._alive[rank]
            if sign.phase == DONE or silent < min(_GONE_SECONDS, self.limit or _GONE_SECONDS):
                continue
            if _state(sign) == "gone":
                return f"{self._name(rank, sign)} is gone; it was at iteration {sign.iteration}"
            if self.limit and silent > self.limit:
                keeps = " (it keeps the store of all: others may be silent for that)"
                return (
                    f"{self._name(rank, sign)} has not answered for {silent:.0f} seconds, "
                    f"{_why(sign)}; it was at iteration {sign.iteration}"
                    + (keeps if rank == 0 and now - self._asked > self.limit / 2 else "")
                )
        return ""

    def _stuck(self) -> str:
        """All workers are alive and none makes progress."""
        signs = {self.rank: self._mine, **self._others}
        if len(signs) < self.world or any(s.phase not in _DOING for s in signs.values()):
            return ""
        now = time.monotonic()
        if self._mine.moves != self._seen:
            self._seen, self._moved[self.rank] = self._mine.moves, now
        idle = now - max(self._moved.values())
        if idle < self.limit:
            return ""
        held = [rank for rank, sign in signs.items() if sign.phase == IMAGES] or list(signs)
        doing = ", ".join(f"{self._name(r, signs[r])} {_DOING[signs[r].phase]}" for r in held)
        place = f"iteration {signs[held[0]].iteration}"
        return f"no worker has gone on for {idle:.0f} seconds at {place}: {doing}"


def connect(url_host: str, port: int, seconds: float = 10.0) -> dist.Store:
    """A separate connection to the store of a job, because the job's own one may be waiting."""
    return dist.TCPStore(
        url_host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds)
    )


def _state(sign: Sign) -> str:
    """The state of a process of this machine: Linux's letter, "gone", or "" on other systems."""
    if sign.host != socket.gethostname() or not Path("/proc/self/stat").exists():
        return ""
    try:
        letter = Path(f"/proc/{sign.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone"
    return "gone" if letter in "ZX" else letter


def _why(sign: Sign) -> str:
    return {
        "gone": "its process has ended",
        "T": "its process is stopped (SIGSTOP)",
        "t": "its process is stopped by a debugger",
        "D": "its process waits for a disk or a network file system",
        "": "its machine or its process has stopped",
    }.get(_state(sign), "its process is there and does nothing")
