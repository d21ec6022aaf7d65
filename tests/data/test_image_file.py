"""PNG, JPEG and TIFF keep the values they hold."""

import errno
import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from normdet.errors import NormdetError
from normdet.medical.readers import find_sources, read_slices

RAMP = np.arange(12 * 10).reshape(12, 10)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i4", "f4", ">u2", ">f4"])
def test_tiff_of_every_depth(tmp_path, dtype):
    values = (RAMP * 500).astype(dtype) if dtype != "u1" else RAMP.astype("u1")
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=">" if dtype[0] == ">" else "<")
    (slice_,) = read_slices(tmp_path / "a.tif")
    assert np.array_equal(slice_.pixels, values)
    assert slice_.pixels.dtype == np.dtype(dtype.strip(">"))
    assert slice_.patient is None and slice_.window is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_of_8_and_16_bits(tmp_path, dtype):
    values = (RAMP * (500 if dtype == np.uint16 else 1)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.png")
    (slice_,) = read_slices(tmp_path / "a.png")
    assert np.array_equal(slice_.pixels, values) and slice_.pixels.dtype == dtype


@pytest.mark.parametrize("mode, shape", [("RGBA", 3), ("LA", 2), ("P", 3), ("1", 2)])
def test_other_modes_become_grey_or_rgb(tmp_path, mode, shape):
    picture = Image.fromarray(RAMP.astype(np.uint8)).convert("RGB").convert(mode)
    picture.save(tmp_path / "a.png")
    (slice_,) = read_slices(tmp_path / "a.png")
    assert slice_.pixels.ndim == shape and slice_.pixels.dtype == np.uint8


def test_a_stack_gives_its_pages(tmp_path):
    stack = np.stack([RAMP, RAMP + 1, RAMP + 2]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    slices = list(read_slices(tmp_path / "a.tif"))
    assert [slice_.name for slice_ in slices] == ["a_0000", "a_0001", "a_0002"]
    assert np.array_equal(np.stack([slice_.pixels for slice_ in slices]), stack)


@pytest.mark.parametrize("planar", [None, "separate"])
def test_colour_tiff_of_16_bits(tmp_path, planar):
    colour = np.stack([RAMP, RAMP + 300, RAMP * 9], axis=-1).astype(np.uint16)
    stored = np.moveaxis(colour, -1, 0) if planar else colour
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    (slice_,) = read_slices(tmp_path / "a.tif")
    assert np.array_equal(slice_.pixels, colour)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate"])
@pytest.mark.parametrize("dtype, channels", [("u1", 1), ("u1", 3), ("u2", 1)])
def test_compressed_tiff(tmp_path, compression, dtype, channels):
    if compression == "jpeg" and dtype == "u2":
        pytest.skip("no such TIFF")
    values = (RAMP * (500 if dtype == "u2" else 2)).astype(dtype)
    values = np.stack([values] * channels, axis=-1).squeeze()
    first, second = (Image.fromarray(array) for array in (values, values[::-1].copy()))
    first.save(tmp_path / "a.tif", compression=compression, save_all=True, append_images=[second])
    slices = list(read_slices(tmp_path / "a.tif"))
    allowed = 8 if compression == "jpeg" else 0
    for slice_, expected in zip(slices, (values, values[::-1]), strict=True):
        assert slice_.pixels.dtype == dtype and slice_.pixels.shape == values.shape
        assert np.abs(slice_.pixels.astype(int) - expected).max() <= allowed


def test_compressed_tiff_that_pillow_would_read_as_another_is_refused(tmp_path, monkeypatch):
    def no_codec(page, *args, **kwargs):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    deep = np.stack([RAMP * 500] * 3, axis=-1).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", no_codec)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", no_codec)
    with pytest.raises(NormdetError, match="requires the 'imagecodecs' package"):
        list(read_slices(tmp_path / "a.tif"))


def test_names_are_unique_and_keep_their_letters(tmp_path):
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        for suffix in ("png", "bmp"):
            image = Image.fromarray(RAMP.astype(np.uint8))
            image.save(tmp_path / folder / f"Zelle übersicht 細胞.{suffix}")
    names = [source.name for source in find_sources(tmp_path)]
    assert len(set(names)) == 4
    assert all("細胞" in name and "/" not in name and " " not in name for name in names)


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG no image")
    (tmp_path / "b.tif").write_bytes(b"II*\0 no image")
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "c.png")
    faults = []
    slices = list(read_slices(tmp_path, report=faults.append))
    assert [slice_.name for slice_ in slices] == ["c"]
    assert "a.png cannot be read as an image" in faults[0] and "b.tif holds no" in faults[1]
    with pytest.raises(NormdetError, match="a.png cannot be read"):
        list(read_slices(tmp_path))


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "private").mkdir()
    (tmp_path / "secret").touch()

    def refusing(function):
        def call(path, *args, **kwargs):
            if str(path).endswith(("private", "secret")):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *args, **kwargs)

        return call

    # Tests may run as root, whom the system lets read all.
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr("builtins.open", refusing(open))
    faults = []
    (source,) = find_sources(tmp_path, report=faults.append)
    assert source.paths == (tmp_path / "a.png",)
    assert sorted(faults) == [
        f"{tmp_path / name} cannot be read: Permission denied" for name in ("private", "secret")
    ]
    with pytest.raises(NormdetError, match="Permission denied"):
        find_sources(tmp_path)


def test_nothing_to_find(tmp_path):
    with pytest.raises(NormdetError, match="holds no image"):
        find_sources(tmp_path)
    with pytest.raises(NormdetError, match="does not exist"):
        find_sources(tmp_path / "gone")
