"""Fake training processes, and functions that wait for them."""

import os
import sys
import time
from pathlib import Path

from normdet.lab.compare.cell import Task
from normdet.lab.compare.runs import Run

FAKE = str(Path(__file__).with_name("fake.py"))


def fake(folder: Path, what: str, batch_size: int = 1, **changes) -> Task:
    run = Run(name=folder.name, batch_size=batch_size, iterations=20, config_hash="x")
    return Task(folder.name, folder, (sys.executable, FAKE, str(folder), what), run, **changes)


def drain(pool, seconds=60):
    ended, deadline = {}, time.monotonic() + seconds
    while pool.busy:
        assert time.monotonic() < deadline
        ended |= {task.title: run for task, run in pool.wait(0.1)}
    return ended


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def attempts(task):
    file = task.folder / "attempts"
    return len(file.read_text().splitlines()) if file.exists() else 0


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
