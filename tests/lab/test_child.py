"""Processes of training runs: what they get, how they end, and what signals do to their starter."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from normdet.engine.launch import Interrupted
from normdet.files.lock import hold
from normdet.lab import child

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and sessions of POSIX")
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
STUBBORN += "print('ready', flush=True)\ntime.sleep(60)"


def started(script, **how):
    return child.start((sys.executable, "-c", script), subprocess.PIPE, **how)


def test_it_gets_the_environment_and_a_session_of_its_own(tmp_path):
    script = "import os; print(os.environ['X'], os.getcwd(), os.getsid(0) == os.getpid())"
    process = started(script, env={"X": "1"}, cwd=str(tmp_path))
    assert process.communicate(timeout=60)[0].decode().split() == ["1", str(tmp_path), "True"]


def test_it_holds_the_lock_after_its_starter_let_go(tmp_path):
    file = tmp_path / ".lock"
    lock = os.open(file, os.O_RDWR | os.O_CREAT)
    assert hold(lock)
    process = started(STUBBORN, lock=lock)
    os.close(lock)
    other = os.open(file, os.O_RDWR)
    assert not hold(other)
    process.kill()
    process.communicate()
    assert hold(other)
    os.close(other)


def test_one_that_will_not_save_is_killed_after_the_grace(monkeypatch):
    monkeypatch.setattr(child, "GRACE_SECONDS", 0.2)
    process = started(STUBBORN)
    assert process.stdout.readline() == b"ready\n"
    child.end(process)
    assert process.returncode == -signal.SIGKILL
    process.stdout.close()


def test_one_that_is_gone_is_asked_in_vain():
    process = started("")
    process.communicate()
    child.ask_to_end(process)
    child.end(process)
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_and_their_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as stopped:
        with child.interruptible():
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)
    assert stopped.value.signal == number and signal.getsignal(number) is before


def test_another_thread_than_the_main_one_is_left_alone():
    done = []

    def work():
        with child.interruptible():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]
