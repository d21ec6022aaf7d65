"""Check the headers of all images before training, and name every bad file at once."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from normdet.data.choice import DEFAULT, Choice
from normdet.data.image_file import ANY_SIZE, Header, check_single, read_header, read_pages
from normdet.errors import NormdetError
from normdet.files.atomic import atomic_file

# Threads mostly wait for files, so there are many.
_THREADS = 16
# The ending of an undamaged file of each format, and the number of last bytes to search for it.
_ENDINGS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82"}
_TAIL = 64


def check_images(records: Sequence[Mapping[str, Any]], choice: Choice = DEFAULT) -> list[str]:
    """A sentence on each image that training would fail on, in the order of the records.

    Reads each file's header, with its orientation, and its end, which shows whether it is whole. A
    file that looks cut is decoded. Takes about 0.2 ms a file, and less for files seen before: the
    user's cache has sizes by a hash of path, length and time of change (no name is kept).

    Args:
        records: with `file_name`, and with `height` and `width` where these are known.
        choice: of channels and planes.
    """
    seen = _Seen(records, choice)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda record: _fault(record, choice, seen), records))
    seen.write()
    return list(dict.fromkeys(filter(None, found)))


def _fault(record: Mapping[str, Any], choice: Choice, seen: "_Seen") -> str | None:
    path = Path(record["file_name"])
    try:
        header = seen.get(path)
        if header is None:
            header = read_header(path, choice=choice)
            if not _looks_whole(path):
                read_pages(path, max_pixels=ANY_SIZE, choice=choice)
            check_single(path, header.count)
            seen.put(path, header)
        stated = record.get("height"), record.get("width")
        if None not in stated and stated != (header.height, header.width):
            raise NormdetError(
                f"{path} has {header.width}x{header.height} pixels as it is loaded, its "
                f"annotations are for {record['width']}x{record['height']}"
            )
    except NormdetError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    return None


def _looks_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        begin = file.read(16)
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(_TAIL, size), os.SEEK_END)
        end = file.read()
    for mark, ending in _ENDINGS.items():
        if begin.startswith(mark):
            return end.rstrip(b"\0\r\n").endswith(ending)
    if begin[:4] == b"RIFF":
        return int.from_bytes(begin[4:8], "little") + 8 <= size
    if begin[:2] == b"BM":
        return int.from_bytes(begin[2:6], "little") <= size
    # A TIFF's header says where its pixels end.
    return begin[:2] in (b"II", b"MM")


class _Seen:
    """The headers of files that were undamaged at the last check."""

    def __init__(self, records: Sequence[Mapping[str, Any]], choice: Choice):
        folders = sorted({os.path.dirname(record["file_name"]) for record in records})
        name = hashlib.blake2b(repr((folders, choice)).encode(), digest_size=12).hexdigest()
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._file = cache / "normdet" / "headers" / f"{name}.json"
        self._known: dict[str, list] = {}
        self._now: dict[str, list] = {}
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._file.read_bytes())
            self._known = content if isinstance(content, dict) else {}

    def get(self, path: Path) -> Header | None:
        """The header of a file that has not changed since."""
        status = path.stat()
        entry = self._known.get(self._key(path))
        if not entry or entry[:2] != [status.st_size, status.st_mtime_ns]:
            return None
        self._now[self._key(path)] = entry
        return Header(*entry[2:])

    def put(self, path: Path, header: Header) -> None:
        """Add a file's header."""
        status = path.stat()
        values = [header.height, header.width, header.count, header.deep]
        self._now[self._key(path)] = [status.st_size, status.st_mtime_ns, *values]

    def write(self) -> None:
        """Save new headers for the next run, if there is a place to write to."""
        if self._now.keys() - self._known.keys() or any(
            self._known[key] != entry for key, entry in self._now.items()
        ):
            with contextlib.suppress(OSError, NormdetError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(self._file) as file:
                    file.write(json.dumps(self._now).encode())

    @staticmethod
    def _key(path: Path) -> str:
        return hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=12).hexdigest()
