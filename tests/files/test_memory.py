"""Memory of a process and of those it started."""

import os
import signal
import subprocess
import sys
import textwrap

from normdet.files.memory import available_memory, held_memory
from tests.lab.compare.scheduled import until


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


def test_memory_of_this_very_process_is_told():
    assert 10 < held_memory(os.getpid()) < 10**6 and available_memory() > 0
    assert held_memory(2**22 + 1) == 0.0
