"""Both schedulers, with processes that stand for training: every way to end, and to be ended."""

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from normdet.files.memory import available_memory, held_memory
from normdet.lab.compare.cell import Task, run_cell
from normdet.lab.compare.local import LocalPool, slots
from normdet.lab.compare.runs import Run, read_run

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


@pytest.mark.parametrize(
    "what, status, note",
    [
        ("well", "done", ""),
        ("diverge", "diverged", "iteration 7: the loss is not finite"),
        ("crash", "crashed", "ValueError: a bug"),
        ("killed", "crashed", "killed by SIGKILL (out of memory?)"),
        ("nothing", "crashed", "it ended well but measured nothing"),
    ],
)
def test_every_way_to_end_is_a_row(tmp_path, what, status, note):
    task = fake(tmp_path / "a", what)
    run = run_cell(task)
    assert (run.status, run.note) == (status, note)
    assert read_run(task.result_file) == run
    assert "torch" in run.versions and run.machine
    assert run.score("box_AP") == (40.0 if status == "done" else None)


def test_its_memory_is_its_own_not_ours(tmp_path):
    ours = bytearray(os.urandom(1)) * (400 << 20)
    task, runs = fake(tmp_path / "a", "hold100"), []
    thread = threading.Thread(target=lambda: runs.append(run_cell(task)))
    thread.start()
    until(lambda: (task.folder / "metrics.json").exists())
    time.sleep(1.5)  # it is looked at twice a second
    (task.folder / "go").touch()
    thread.join(30)
    assert len(ours) and 100 < runs[0].memory_mb < 300


def test_weights_are_kept_only_where_asked(tmp_path):
    for keep in (False, True):
        task = fake(tmp_path / str(keep), "well", keep=keep)
        run_cell(task)
        assert (task.folder / "model_final.pth").exists() == keep


def test_where_nothing_is_to_be_found_there_is_no_ap(tmp_path):
    task = fake(tmp_path / "a", "well")
    script = Path(FAKE).read_text().replace('{"AP": 40.0, "AP50": 60.0}', '{"AP": None}')
    (tmp_path / "none.py").write_text(script)
    words = (sys.executable, str(tmp_path / "none.py"), *task.command[2:])
    run = run_cell(replace(task, command=words))
    assert (run.score("box_AP"), run.note) == (None, "the test images have no object to find")


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
    # 150 MB are free, of which the first may still take its share: no second one fits.
    assert [task.title for task in narrow.running] == ["n0"]
    for task in tasks + more:
        task.folder.mkdir(exist_ok=True)
        (task.folder / "go").touch()
    assert len(drain(pool)) == 3 and len(drain(narrow)) == 3  # one at a time always goes


def test_the_log_of_a_run_that_is_gone_on_with_tells_nothing_of_its_memory(tmp_path):
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


def test_each_norm_needs_what_it_needed(tmp_path):
    pool = LocalPool(slots(3, [], 1, 1), available=lambda: 1000.0)
    for norm, size, peak in (("GN", 2, 900.0), ("BN", 2, 100.0), ("GN", 4, 1800.0)):
        pool.learn(norm, size, peak)

    def expected(norm, size):
        return pool._expected(Task("", tmp_path, (), Run(name="", norm=norm, batch_size=size)))

    assert expected("BN", 2) == 100 and expected("GN", 2) == 900
    assert expected("IN", 2) == 900 and expected("IN", 3) == 1800  # as others, not in proportion
    assert expected("BN", 1) == 900 and expected("BN", 8) == 3600


def test_memory_is_of_a_run_and_the_workers_it_started():
    code = """
import os, sys, time
if os.fork() == 0:
    held = bytearray(os.urandom(1)) * (100 << 20)
    time.sleep(60)
print("ready", flush=True)
time.sleep(60)
"""
    words = [sys.executable, "-c", textwrap.dedent(code)]
    leader = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
    try:
        leader.stdout.readline()
        until(lambda: held_memory(leader.pid) > 100)
        assert held_memory(leader.pid) < 300
    finally:
        os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


def test_gpus_are_shared_out():
    environments = slots(4, ["0", "3"], 0.5, 2)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in environments] == ["0", "3", "0", "3"]
    assert all(e["OMP_NUM_THREADS"] == "2" for e in environments)
    assert len(slots(9, ["0", "1"], 1.0, 1)) == 2


def test_memory_of_this_very_process_is_told():
    assert 10 < held_memory(os.getpid()) < 10**6 and available_memory() > 0
    assert held_memory(2**22 + 1) == 0.0


def test_closing_stops_what_runs_and_loses_only_that(tmp_path):
    pool = LocalPool(slots(1, [], 1, 1), available=lambda: None)
    first, second = fake(tmp_path / "first", "hold"), fake(tmp_path / "second", "hold")
    pool.submit(first)
    pool.submit(second)
    pool.wait(0)
    until(lambda: (first.folder / "metrics.json").exists())
    pool.close()
    assert not first.result_file.exists() and not second.folder.exists()


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
    until(lambda: not _alive(pid))


DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from tests.lab.compare.test_schedulers import fake
    from normdet.lab.compare.local import LocalPool, slots

    pool = LocalPool(slots(2, [], 1, 1), available=lambda: None)
    for name, what in (("done", "well"), ("flying", "hold")):
        task = fake(Path({folder!r}) / name, what)
        if not task.result_file.exists():
            pool.submit(task)
    while pool.busy:
        pool.wait(0.1)
"""


@pytest.mark.slow
def test_kill_nine_in_the_middle_loses_nothing_that_was_done(tmp_path):
    """What the killed command left running is waited for, not started beside it."""
    root = str(Path(__file__).resolve().parents[3])
    code = textwrap.dedent(DRIVER.format(root=root, folder=str(tmp_path)))
    done, flying = fake(tmp_path / "done", "well"), fake(tmp_path / "flying", "hold")
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    until(lambda: done.result_file.exists() and (flying.folder / "metrics.json").exists())
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not flying.result_file.exists()

    runs = []
    thread = threading.Thread(target=lambda: runs.append(run_cell(flying)))
    thread.start()
    time.sleep(0.5)
    assert attempts(flying) == 1  # the orphan holds the cell
    (flying.folder / "go").touch()
    thread.join(30)
    assert runs[0].status == "done" and attempts(flying) == 2 and attempts(done) == 1


def test_waiting_for_an_orphan_can_be_stopped(tmp_path):
    task, stop = fake(tmp_path / "a", "hold"), threading.Event()
    owner = threading.Thread(target=run_cell, args=(task,))
    owner.start()
    until(lambda: attempts(task))
    waiting = []
    second = threading.Thread(target=lambda: waiting.append(run_cell(task, stopping=stop.is_set)))
    second.start()
    stop.set()
    second.join(10)
    assert waiting == [None]
    (task.folder / "go").touch()
    owner.join(30)


@pytest.mark.slow
def test_a_ray_cluster_runs_them_too(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from normdet.lab.compare.ray_pool import RayPool

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pool = RayPool("local", threads=1, share=0)
    try:
        for name in ("well", "crash", "diverge"):
            pool.submit(fake(tmp_path / name, name))
        ended = drain(pool, 300)  # a cluster takes its time to start
        assert {name: run.status for name, run in ended.items()} == {
            "well": "done", "crash": "crashed", "diverge": "diverged",
        }  # fmt: skip
        assert ended["well"].score("box_AP") == 40.0
        flying = fake(tmp_path / "flying", "hold")
        pool.submit(flying)
        until(lambda: (flying.folder / "metrics.json").exists())
        assert [task.title for task in pool.running] == ["flying"]
    finally:
        pool.close()
    assert not flying.result_file.exists()
    pid = int((flying.folder / "attempts").read_text())
    until(lambda: not _alive(pid))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_address_where_no_cluster_answers_is_named():
    pytest.importorskip("ray")
    from normdet import NormdetError
    from normdet.lab.compare.ray_pool import RayPool

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(NormdetError, match="--ray nonsense"):
        RayPool("nonsense", 1, 0)
    assert signal.getsignal(signal.SIGTERM) is before
