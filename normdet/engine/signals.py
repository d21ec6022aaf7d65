"""Ctrl-C and SIGTERM as a request to stop between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is noted; the second acts as it did before.

    Outside the main thread, where Python handles no signals, it notes none.

    Args:
        on_request: called when the first one comes.

    Attributes:
        number: the signal that came, or 0.
    """

    def __init__(self, on_request: Callable[[], None]):
        self._on_request = on_request
        self._before: dict[int, object] = {}
        self._at_once = False
        self.number = 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _STOPPING}
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
        """Inside, a request raises KeyboardInterrupt: for work that need not be finished."""
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
        self.number = number
        self._restore()
        self._on_request()
        if self._at_once:
            raise KeyboardInterrupt
