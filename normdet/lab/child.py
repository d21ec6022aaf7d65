"""Training runs as processes of their own. They are asked to save and end when their starter is."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import IO, NoReturn

import psutil

from normdet.engine.launch import GRACE_SECONDS, Interrupted
from normdet.engine.signals import handling


def start(
    command: Sequence[str], output: IO | int, env: Mapping[str, str] | None = None,
    cwd: str | None = None, lock: int | None = None,
) -> subprocess.Popen:  # fmt: skip
    """Start a process in a session of its own, so that Ctrl-C reaches it only through us.

    Args:
        command: its words.
        output: where its output and errors go: an open file, or `subprocess.PIPE`.
        env: added to the environment.
        cwd: the folder it starts in.
        lock: a locked file that it holds, too, in case we are killed first.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[lock] if lock is not None and os.name == "posix" else (),
    )


def ask_to_end(process: subprocess.Popen) -> None:
    """Ask a process and its children to save and end."""
    _signal(process, signal.SIGTERM)


def end(process: subprocess.Popen) -> None:
    """Ask a process to save and end, and wait; kill it if it takes more than `GRACE_SECONDS`."""
    ask_to_end(process)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.wait()


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
            return
        leader = psutil.Process(process.pid)
        for one in [*leader.children(recursive=True), leader]:
            one.send_signal(signal.SIGTERM)  # on Windows this ends a process at once


def interruptible() -> contextlib.AbstractContextManager[None]:
    """Inside, every signal that asks us to stop raises :class:`Interrupted` in the main thread."""
    return handling(_interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(f"stopped by {signal.Signals(number).name}", number)
