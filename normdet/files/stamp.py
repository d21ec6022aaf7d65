"""Whether files have changed."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from normdet.files.faults import unreadable


def stamp_of(paths: Iterable[Path]) -> str:
    """A hash that changes with the files and their paths, and reveals neither.

    Raises:
        NormdetError: a file that is gone.
    """
    parts = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        parts.append(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}")
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]
