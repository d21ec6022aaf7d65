"""One process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from normdet.errors import NormdetError


@contextlib.contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold the file `path`, made if missing, as long as the block or the process lives.

    Raises:
        NormdetError: with the sentence `busy`, where another process holds it.
        OSError: where it cannot be made.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NormdetError(busy) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(lock)
