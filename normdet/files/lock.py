"""One process at a time."""

from typing import IO

from filelock import lock_descriptor


def hold(file: int | IO) -> bool:
    """Whether this process now holds the lock of an open file, until all that inherit it close it.

    Does not wait. On a file system without locks everyone has it.
    """
    try:
        return lock_descriptor(file if isinstance(file, int) else file.fileno(), blocking=False)
    except OSError:
        return True
