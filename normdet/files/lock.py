"""One process at a time."""

from typing import IO

from filelock import lock_descriptor


def hold(file: int | IO) -> bool:
    """Take the lock of an open file and return whether this process has it.

    Does not wait. On a file system without locks every process gets it.
    """
    try:
        return lock_descriptor(file if isinstance(file, int) else file.fileno(), blocking=False)
    except OSError:
        return True
