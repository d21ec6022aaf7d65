"""One process at a time."""

import fcntl
from typing import IO


def hold(file: int | IO) -> bool:
    """Whether this process has the open file to itself now, and until all that inherit it close it.

    Does not wait. On a file system without locks everyone has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True
