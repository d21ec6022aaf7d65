"""Files that unpack to far more than their size are refused by their headers."""

import struct
import zlib

import numpy as np
import pytest
import tifffile

from normdet.data.check import check_images
from normdet.data.image_file import read_header, read_pages
from normdet.data.slices import MAX_PIXELS
from normdet.errors import NormdetError

SIDE = 10_000


def png(path, kind, depth):
    """A PNG of `SIDE` x `SIDE` black pixels, written row by row."""
    samples = {0: 1, 2: 3, 6: 4}[kind]
    pack = zlib.compressobj(9)
    row = bytes(1 + SIDE * samples * depth // 8)
    data = b"".join([*(pack.compress(row * 100) for _ in range(SIDE // 100)), pack.flush()])

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def tiff(path, samples):
    pixels = np.zeros((SIDE, SIDE, samples)[: 2 + (samples > 1)], np.uint8)
    kind = "rgb" if samples > 1 else "minisblack"
    tifffile.imwrite(path, pixels, compression="zlib", photometric=kind)


BOMBS = {
    "grey.png": lambda path: png(path, 0, 8),
    "deep.png": lambda path: png(path, 0, 16),
    "alpha16.png": lambda path: png(path, 6, 16),
    "grey.tif": lambda path: tiff(path, 1),
    "colour.tif": lambda path: tiff(path, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_on_every_route(tmp_path, name):
    path = tmp_path / name
    BOMBS[name](path)
    told = rf"{name} unpacks to 0\.\d+ GB from 0\.\d+ MB: it is a compression bomb"
    with pytest.raises(NormdetError, match=told):
        read_pages(path, max_pixels=MAX_PIXELS)
    with pytest.raises(NormdetError, match=told):
        read_header(path)
    record = {"file_name": str(path), "height": SIDE, "width": SIDE}
    assert "compression bomb" in check_images([record])[0]
    # A label image may have a single value.
    assert read_header(path, labels=True).height == SIDE


def test_small_images_of_one_colour_are_fine(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2000, 2000), np.uint8), compression="zlib")
    assert read_pages(tmp_path / "a.tif", max_pixels=MAX_PIXELS)[0].shape == (2000, 2000)


def pages(path, count, circle=False):
    """A TIFF whose directories are many pages of the same pixels."""
    place, entries = 8, ((256, 4), (257, 4), (258, 8), (262, 1), (273, 0), (278, 4), (279, 16))
    size = 2 + 12 * len(entries) + 4
    parts = [b"II*\0", struct.pack("<I", place)]
    for number in range(count):
        last = number == count - 1
        following = (place if circle else 0) if last else place + size * (number + 1)
        tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        parts.append(struct.pack("<H", len(entries)) + tags + struct.pack("<I", following))
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize(("count", "circle"), [(20_000, False), (1, True), (3, True)])
def test_pages_without_end_are_refused(tmp_path, count, circle):
    pages(tmp_path / "a.tif", count, circle)
    for read in (read_header, lambda path: read_pages(path, max_pixels=MAX_PIXELS)):
        with pytest.raises(NormdetError, match="more than the 16,384 pages"):
            read(tmp_path / "a.tif")


def test_many_pages_are_read(tmp_path):
    pages(tmp_path / "a.tif", 50)
    assert read_header(tmp_path / "a.tif").count == 50
