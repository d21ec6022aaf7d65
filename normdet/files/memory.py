"""How much memory processes hold, and how much there is left."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> float:
    """The MB that are still free on this machine, or in the container that limits us."""
    free = psutil.virtual_memory().available / 2**20
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        used = int((_GROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, (int(limit) - used) / 2**20)


def held_memory(pid: int) -> float:
    """The MB that a process and its children hold; 0 if it has ended.

    Shared memory is counted once if the system says how much of it each process has.
    """
    try:
        leader = psutil.Process(pid)
        return sum(map(_held, [leader, *leader.children(recursive=True)])) / 2**20
    except psutil.Error:
        return 0.0


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Inside, Python does not search for cycles of objects.

    The contents of a file have no cycles, and searching millions of objects takes longer than
    reading them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _held(process: psutil.Process) -> int:
    try:
        return getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
    except psutil.Error:  # it has ended, or is another user's
        return 0
