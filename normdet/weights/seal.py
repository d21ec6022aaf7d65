"""A hash of a whole weights file, stored inside the file, which reveals any changed byte.

A `.pth` has it in the comment at the end of its zip archive, a `.safetensors` in its header, where
the bytes of the hash itself count as zeros. Both stay readable for every other program. A seal's
marker is separate from its hash, so that a damaged seal is not taken for a missing one.
"""

import hashlib
import re
from pathlib import Path
from typing import IO

from normdet.weights.integrity import DamagedFileError

_BLOCK = 1 << 20
_DIGITS = 64
_NOTE = b"normdet blake2b "
_NOTE_LENGTH, _LONGEST_NOTE = len(_NOTE) + _DIGITS, 0xFFFF
_END_RECORD, _END_RECORD_LENGTH = b"PK\x05\x06", 22
# Names in the header of a .safetensors.
BY, SEAL = "sealed_by", "seal"
_MARK, _PLACE = b'"sealed_by":"normdet"', b'"seal":"'
UNSEALED = "0" * _DIGITS


class SealedArchive:
    """A file for `torch.save` to write an archive to; :meth:`close` adds the seal.

    Args:
        file: where it goes, at its beginning.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = _new_hash()
        self._held = b""  # the archive's last bytes: the length of its comment is not known yet

    def write(self, data: bytes) -> int:
        """Write and hash."""
        length = len(data)
        if length < 2:
            data = self._held + bytes(data)
        else:
            self._put(self._held)
        view = memoryview(data)
        self._put(view[:-2])
        self._held = bytes(view[-2:])
        return length

    def flush(self) -> None:
        """Do nothing: the file's owner flushes it."""

    def close(self) -> None:
        """Write the comment with the seal."""
        if self._held != b"\0\0":
            raise ValueError("the archive has a note already")
        self._put(_NOTE_LENGTH.to_bytes(2, "little") + _NOTE)
        self._file.write(self._hash.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)


def check_archive_seal(path: Path) -> bool:
    """Verify the seal of a `.pth`; return whether it has one.

    Raises:
        DamagedFileError: a seal that does not match, or is damaged itself.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END_RECORD_LENGTH - _LONGEST_NOTE))
        end = file.read()
        place = end.rfind(_END_RECORD)
        note = end[place + _END_RECORD_LENGTH :]
        stated = int.from_bytes(end[place + _END_RECORD_LENGTH - 2 :][:2], "little")
        if place < 0 or not (note or stated):
            return False
        ours = _NOTE_LENGTH in (stated, len(note)) or _NOTE[:7] in note
        if not ours:
            return False
        if stated != len(note) or not re.fullmatch(_NOTE + rb"[0-9a-f]{64}", note):
            raise DamagedFileError("the note at its end is not what was written")
        found, left = _new_hash(), size - _DIGITS
        file.seek(0)
        while left:
            block = file.read(min(_BLOCK, left))
            if not block:
                raise DamagedFileError("it has become shorter while it was read")
            found.update(block)
            left -= len(block)
    _compare(found.hexdigest(), note[-_DIGITS:])
    return True


def seal_safetensors(data: bytes) -> bytes:
    """Put the hash of a `.safetensors` in place of `UNSEALED` under `SEAL` in its header."""
    place = _seal_place(data)
    return b"".join((data[:place], _hash_without(data, place).encode(), data[place + _DIGITS :]))


def check_safetensors_seal(data: bytes) -> bool:
    """Verify the seal of a `.safetensors`; return whether it has one.

    Raises:
        DamagedFileError: a seal that does not match, or is damaged itself.
    """
    header = _header(data)
    if _MARK not in header and _PLACE not in header:
        return False
    if _MARK not in header or header.count(_PLACE) != 1:
        raise DamagedFileError("its seal is not what was written")
    place = _seal_place(data)
    _compare(_hash_without(data, place), data[place : place + _DIGITS])
    return True


def has_safetensors_seal(path: Path) -> bool:
    """Whether a `.safetensors` is sealed; the seal is not verified."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return _PLACE in file.read(min(length, 100 << 20))


def _header(data: bytes) -> bytes:
    return data[8 : 8 + min(int.from_bytes(data[:8], "little"), 100 << 20)]


def _seal_place(data: bytes) -> int:
    return 8 + _header(data).index(_PLACE) + len(_PLACE)


def _hash_without(data: bytes, place: int) -> str:
    found, view = _new_hash(), memoryview(data)
    for part in (view[:place], UNSEALED.encode(), view[place + _DIGITS :]):
        found.update(part)
    return found.hexdigest()


def _compare(found: str, written: bytes) -> None:
    if found.encode() != written:
        raise DamagedFileError("its content does not match the hash that it was written with")


def _new_hash() -> "hashlib._Hash":
    return hashlib.blake2b(digest_size=_DIGITS // 2)
