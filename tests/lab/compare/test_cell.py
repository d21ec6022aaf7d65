"""Every way a run ends is a row; an orphan is waited for."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from normdet.lab.compare.cell import run_cell
from normdet.lab.compare.runs import read_run
from tests.lab.compare.scheduled import FAKE, attempts, fake, until


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


@pytest.mark.slow
def test_the_measured_memory_is_the_run_s_alone(tmp_path):
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


def test_without_objects_there_is_no_ap(tmp_path):
    task = fake(tmp_path / "a", "well")
    script = Path(FAKE).read_text().replace('{"AP": 40.0, "AP50": 60.0}', '{"AP": None}')
    (tmp_path / "none.py").write_text(script)
    words = (sys.executable, str(tmp_path / "none.py"), *task.command[2:])
    run = run_cell(replace(task, command=words))
    assert (run.score("box_AP"), run.note) == (None, "the test images have no object to find")


DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from tests.lab.compare.scheduled import fake
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
    """A process that the killed command left running is waited for, not started again."""
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
