"""Runs beside each other: their lines, their ends, and what a signal does to them."""

import io
import os
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from normdet.engine.launch import Interrupted
from normdet.errors import NormdetError
from normdet.lab.beside import Job, run_all

# Waits until the other one has begun as well: neither ends if one runs after the other.
TOGETHER = """
import os, pathlib, sys, time
here, other = map(pathlib.Path, sys.argv[1:])
here.touch()
while not other.exists():
    time.sleep(0.01)
print("threads", os.environ["OMP_NUM_THREADS"])
"""
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    print("saving", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[2]).touch()
time.sleep(60)
"""


def job(folder, name, script, *words):
    command = (sys.executable, "-c", script, *map(str, words))
    return Job(name, command, folder / name / "metrics.json", 10)


def run(jobs, at_once=2, terminal=False):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    try:
        run_all(jobs, at_once, {"OMP_NUM_THREADS": "3"}, console)
    finally:
        run.said = out.getvalue()
    return run.said


def test_two_run_at_once_and_each_line_bears_its_name(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    said = run([job(tmp_path, "GN", TOGETHER, a, b), job(tmp_path, "FRN", TOGETHER, b, a)])
    assert sorted(said.splitlines()) == ["FRN: threads 3", "GN: threads 3"]


def test_one_at_a_time_keeps_the_order(tmp_path):
    said = run([job(tmp_path, name, f"print({name!r})") for name in "abc"], at_once=1)
    assert said.splitlines() == ["a: a", "b: b", "c: c"]


def test_a_terminal_shows_a_bar_for_each(tmp_path):
    (tmp_path / "GN").mkdir()
    (tmp_path / "GN/metrics.json").write_text('{"iteration": 3}\n')
    assert "4/10" in run([job(tmp_path, "GN", "print('[x]')")], terminal=True)
    assert "GN: [x]" in run.said


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_run_that_fails_ends_the_others_which_save(tmp_path):
    saved, begun = tmp_path / "saved", tmp_path / "begun"
    fails = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists():\n"
    fails += " time.sleep(0.01)\nsys.exit('normdet: error: no such key')"
    jobs = [job(tmp_path, "GN", SAVES, saved, begun), job(tmp_path, "BN", fails, begun)]
    with pytest.raises(NormdetError, match="BN: its run ended with code 1"):
        run(jobs)
    assert saved.read_text() == "saved"
    assert "BN: normdet: error: no such key" in run.said


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_all_save_before_it_ends(tmp_path, number):
    saved, begun = tmp_path / "saved", tmp_path / "begun"

    def stop():
        deadline = time.monotonic() + 30
        while not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}; .* saved") as stopped:
        run([job(tmp_path, "GN", SAVES, saved, begun)])
    thread.join()
    assert stopped.value.signal == number and saved.read_text() == "saved"
    assert "GN: saving" in run.said and signal.getsignal(number) is before
