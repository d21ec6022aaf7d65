"""Read files of strangers whole, if they are regular files of no more than a stated size."""

import os
import stat
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import IO

import numpy as np

from normdet.errors import NormdetError
from normdet.files.faults import unreadable

# The annotations of one image take some kB, and their elements nest four deep.
_LARGEST_XML = 32 << 20
_DEEPEST_XML = 64
_BLOCK = 1 << 16


def check_regular(path: Path) -> int:
    """The size of a regular file. Reading a pipe or a device could wait or go on for ever.

    Raises:
        NormdetError: naming a path that is no regular file.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise NormdetError(f"{path} is {kind}, not a file: not read")
    return status.st_size


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file of up to `largest` bytes.

    Raises:
        NormdetError: one that cannot be read, is larger, or is no regular file.
    """
    size = check_regular(path)
    if size > largest:
        raise NormdetError(f"{path} is larger than {_size(largest)}: not read")
    try:
        with open(path, "rb") as file:
            return file.read(size)  # allocates as much memory as it is asked for
    except OSError as error:
        raise unreadable(path, error) from error


def read_text(path: Path, largest: int) -> str:
    """The text of a regular file in UTF-8; see :func:`read_bytes`.

    Raises:
        NormdetError: as :func:`read_bytes`, or the text is not UTF-8.
    """
    try:
        return read_bytes(path, largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NormdetError(f"{path} is not text in UTF-8: save it so") from error


def read_npy_head(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a `.npy`'s array; what follows in the file is the array itself.

    Raises:
        ValueError: no such head.
    """
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def parse_xml(path: Path, largest: int = _LARGEST_XML) -> ET.Element:
    """The root of an XML file that declares no entity and nests no deeper than 64 elements.

    Raises:
        NormdetError: as :func:`read_bytes`, or the file is not such XML.
    """
    text = read_bytes(path, largest)
    # An entity can expand without bound; no annotation file declares one.
    if b"<!ENTITY" in text.replace(b"\0", b""):  # in UTF-16 too
        raise NormdetError(f"{path} declares an XML entity: not read")
    parser, open_elements = ET.XMLPullParser(("start", "end")), []
    try:
        for place in range(0, len(text), _BLOCK):
            parser.feed(text[place : place + _BLOCK])
            for event, element in parser.read_events():
                if event == "start":
                    open_elements.append(element)
                elif len(open_elements) > 1:
                    open_elements.pop()
                if len(open_elements) > _DEEPEST_XML:
                    raise NormdetError(f"{path} nests elements deeper than {_DEEPEST_XML}")
        parser.close()
        return open_elements[0]
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: its encoding
        if isinstance(error, NormdetError):
            raise
        raise NormdetError(f"{path} is not XML: {error}") from error


def _size(count: int) -> str:
    return f"{count >> 30} GB" if count >> 30 else f"{count >> 20 or count / (1 << 20):.3g} MB"
