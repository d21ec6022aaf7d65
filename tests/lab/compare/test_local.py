"""Runs on this machine: as many at once as slots and memory allow, and how they are stopped."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from normdet.lab.compare.cell import Task
from normdet.lab.compare.local import LocalPool, slots
from normdet.lab.compare.runs import Run
from tests.lab.compare.scheduled import FAKE, alive, attempts, drain, fake, until


def test_a_crash_does_not_hold_up_the_others(tmp_path):
    pool = LocalPool(slots(2, [], 1, 1), available=lambda: None)
    for name in ("well", "crash", "diverge", "killed"):
        pool.submit(fake(tmp_path / name, name))
    pool.submit(fake(tmp_path / "last", "well"))
    ended = drain(pool)
    assert {name: run.status for name, run in ended.items()} == {
        "well": "done", "crash": "crashed", "diverge": "diverged", "killed": "crashed",
        "last": "done",
    }  # fmt: skip


def test_no_more_run_at_once_than_there_are_slots(tmp_path):
    pool = LocalPool(slots(2, [], 1, 1), available=lambda: None)
    tasks = [fake(tmp_path / str(i), "hold") for i in range(3)]
    for task in tasks:
        pool.submit(task)
    until(lambda: pool.wait(0.05) == [] and attempts(tasks[0]) and attempts(tasks[1]))
    assert [task.title for task in pool.running] == ["0", "1"] and not attempts(tasks[2])
    for task in tasks:
        task.folder.mkdir(exist_ok=True)
        (task.folder / "go").touch()
    assert len(drain(pool)) == 3


def test_the_first_runs_alone_until_its_memory_is_known_and_then_memory_decides(tmp_path):
    free = [1e6]
    pool = LocalPool(slots(4, [], 1, 1), available=lambda: free[0])
    tasks = [fake(tmp_path / str(i), "hold100") for i in range(3)]
    for task in tasks:
        pool.submit(task)
    pool.wait(0)
    assert len(pool.running) == 1
    pool.wait(0)
    until(lambda: pool.wait(0.02) == [] and len(pool.running) == 3)  # known, and there is room

    narrow = LocalPool(slots(4, [], 1, 1), available=lambda: 150.0)
    narrow.learn("", 4, 100.0)
    more = [fake(tmp_path / f"n{i}", "hold", batch_size=size) for i, size in enumerate((4, 4, 2))]
    for task in more:
        narrow.submit(task)
    for _ in range(3):
        narrow.wait(0.05)
    # 150 MB are free, and the first may still take its share, so no second one fits.
    assert [task.title for task in narrow.running] == ["n0"]
    for task in tasks + more:
        task.folder.mkdir(exist_ok=True)
        (task.folder / "go").touch()
    assert len(drain(pool)) == 3 and len(drain(narrow)) == 3  # one at a time always goes


def test_an_old_log_of_a_resumed_run_does_not_count_for_its_memory(tmp_path):
    task = fake(tmp_path / "a", "hold")
    pool = LocalPool(slots(2, [], 1, 1), available=lambda: 1e6)
    task.folder.mkdir()
    (task.folder / "metrics.json").write_text('{"iteration": 9}\n')  # of the run before
    os.utime(task.folder / "metrics.json", (1, 1))
    script = Path(FAKE).read_text().replace('(folder / "metrics.json").write_text', "str")
    (tmp_path / "silent.py").write_text(script)
    silent = (sys.executable, str(tmp_path / "silent.py"), *task.command[2:])
    pool.submit(replace(task, title="a", command=silent))
    pool.submit(fake(tmp_path / "b", "well"))
    until(lambda: pool.wait(0.02) == [] and attempts(task))
    for _ in range(5):
        pool.wait(0.05)
    assert [running.title for running in pool.running] == ["a"]  # it has logged no step yet
    os.utime(task.folder / "metrics.json")
    until(lambda: dict((t.title, run) for t, run in pool.wait(0.1)).get("b"))
    (task.folder / "go").touch()
    drain(pool)


def test_the_expected_memory_follows_earlier_runs_of_the_norm(tmp_path):
    pool = LocalPool(slots(3, [], 1, 1), available=lambda: 1000.0)
    for norm, size, peak in (("GN", 2, 900.0), ("BN", 2, 100.0), ("GN", 4, 1800.0)):
        pool.learn(norm, size, peak)

    def expected(norm, size):
        return pool.expected(Task("", tmp_path, (), Run(name="", norm=norm, batch_size=size)))

    assert expected("BN", 2) == 100 and expected("GN", 2) == 900
    assert expected("IN", 2) == 900 and expected("IN", 3) == 1800  # as others, not in proportion
    assert expected("BN", 1) == 900 and expected("BN", 8) == 3600


def test_gpus_are_shared_out():
    environments = slots(4, ["0", "3"], 0.5, 2)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["0", "3", "0", "3"]
    assert all(e["OMP_NUM_THREADS"] == "2" for e in environments)
    assert len(slots(9, ["0", "1"], 1.0, 1)) == 2


def test_closing_stops_what_runs_and_loses_only_that(tmp_path):
    pool = LocalPool(slots(1, [], 1, 1), available=lambda: None)
    first, second = fake(tmp_path / "first", "hold"), fake(tmp_path / "second", "hold")
    pool.submit(first)
    pool.submit(second)
    pool.wait(0)
    until(lambda: (first.folder / "metrics.json").exists())
    pool.close()
    assert not first.result_file.exists() and not second.folder.exists()


@pytest.mark.slow
def test_closing_reaches_what_a_shell_started(tmp_path):
    inner = fake(tmp_path / "a", "hold")
    line = f"{shlex.join(inner.command)} && true"
    task = Task("a", inner.folder, ("sh", "-c", line), inner.run)
    pool = LocalPool(slots(1, [], 1, 1), available=lambda: None)
    pool.submit(task)
    pool.wait(0)
    until(lambda: (task.folder / "metrics.json").exists())
    pid = int((task.folder / "attempts").read_text())
    pool.close()
    until(lambda: not alive(pid))
