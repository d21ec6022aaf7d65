"""Turn Ctrl-C, SIGTERM and a lost terminal into a request to stop between two steps."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType, TracebackType

_STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
# Signals within these seconds count as one request: a terminal, a launcher and a scheduler may
# each send it.
SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """While entered, the first signal is noted; another, two seconds later, ends at once.

    It ends by `os._exit`, since an exception could be raised in any line. In interactive Python it
    raises KeyboardInterrupt, as people expect there. A signal that was ignored before, such as
    SIGHUP under `nohup`, stays ignored. Outside the main thread Python handles no signals, so none
    is noted.

    Args:
        on_request: called when the first signal comes.

    Attributes:
        number: the signal that came, or 0.
    """

    def __init__(self, on_request: Callable[[], None]):
        self._on_request = on_request
        self._before: dict[int, object] = {}
        self._at_once = False
        self._first = 0.0
        self.number = 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in stopping_signals():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a request raises KeyboardInterrupt, for work that need not be finished."""
        if self.number:
            raise KeyboardInterrupt
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if time.monotonic() - self._first > SAME_REQUEST_SECONDS:
                self._end(number)
            return
        self.number, self._first = number, time.monotonic()
        self._on_request()
        if self._at_once:
            raise KeyboardInterrupt

    def _end(self, number: int) -> None:
        if hasattr(sys, "ps1") or "ipykernel" in sys.modules:
            self._restore()
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        show_cursor()
        text = f"normdet: ended at once by another {name}, the last checkpoint stands\n"
        os.write(2, text.encode())
        os._exit(128 + number)


def stopping_signals() -> list[int]:
    """The signals that ask a process to stop, without those that it ignores."""
    return [one for one in _STOPPING if signal.getsignal(one) != signal.SIG_IGN]


def start_tracker() -> None:
    """Start the process by which multiprocessing tracks resources, deaf to a lost terminal.

    It ignores SIGINT and SIGTERM by itself. SIGHUP would end it before the workers, which then
    start another that knows of nothing and prints tracebacks.
    """
    if not hasattr(signal, "SIGHUP"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # inherited
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, `handler` gets the signals that ask to stop; outside the main thread none comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def show_cursor() -> None:
    """Show the cursor that a progress bar hid, before the process ends without clean-up."""
    if sys.stdout.isatty():
        os.write(1, b"\x1b[?25h")
