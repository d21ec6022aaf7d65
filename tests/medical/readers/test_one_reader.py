"""The same picture in many forms gives the same pixels by every route."""

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import tifffile
from detectron2.structures import Boxes, Instances
from PIL import Image

from normdet.data import build_mapper
from normdet.data.image_file import read_header, read_pages
from normdet.data.images import Images
from normdet.data.window import parse_window
from normdet.errors import NormdetError
from normdet.evaluation.detector import Detector
from normdet.medical.readers import find_sources, read_slices
from normdet.medical.windowed import read_windowed

HEIGHT, WIDTH = 32, 64
# Few enough colours for a palette, and no two rows or columns alike.
GREY = ((np.arange(HEIGHT)[:, None] * 7 + np.arange(WIDTH) ** 2 // 9) % 251).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2 + 20], axis=-1)
# How to store a picture so that tag 274 turns it upright.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
INDICES, PALETTE = np.unique(RGB.reshape(-1, 3), axis=0, return_inverse=True)[::-1]
INDICES = INDICES.reshape(HEIGHT, WIDTH).astype(np.uint8)


def tiff(path, pixels, **options):
    tifffile.imwrite(path, np.ascontiguousarray(pixels), **options)


def turned_tiff(path, pixels, orientation):
    tag = (274, "H", 1, orientation, True)
    tiff(path, STORED[orientation](pixels), photometric="rgb", extratags=[tag], metadata=None)


def turned_png(path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](RGB))).save(path, exif=exif)


def palette_tiff(path, indices=INDICES, **options):
    table = np.zeros((3, 256), np.uint16)
    table[:, : len(PALETTE)] = PALETTE.T.astype(np.uint16) * 257
    tiff(path, indices, photometric="palette", colormap=table, metadata=None, **options)


def palette_png(path):
    picture = Image.fromarray(INDICES).convert("P")
    picture = Image.fromarray(INDICES, mode="P") if picture.mode != "P" else picture
    picture.putdata(INDICES.ravel().tolist())
    picture.putpalette(PALETTE.astype(np.uint8).ravel().tolist())
    picture.save(path)


def cmyk(path, dtype=np.uint8):
    most = np.iinfo(dtype).max
    inks = np.dstack([255 - RGB, np.zeros_like(GREY)]).astype(dtype) * (most // 255)
    tiff(path, inks, photometric="separated", metadata=None)


COLOUR = {
    "png": lambda p: Image.fromarray(RGB).save(p / "a.png"),
    "png with alpha": lambda p: Image.fromarray(RGB).convert("RGBA").save(p / "a.png"),
    "png with a palette": lambda p: palette_png(p / "a.png"),
    "png turned by EXIF": lambda p: turned_png(p / "a.png", 6),
    "bmp": lambda p: Image.fromarray(RGB).save(p / "a.bmp"),
    "webp": lambda p: Image.fromarray(RGB).save(p / "a.webp", lossless=True),
    "png named jpg": lambda p: Image.fromarray(RGB).save(p / "a.jpg", format="PNG"),
    "tiff named png": lambda p: Image.fromarray(RGB).save(p / "a.png", format="TIFF"),
    "tiff": lambda p: tiff(p / "a.tif", RGB, photometric="rgb"),
    "big tiff": lambda p: tiff(p / "a.tif", RGB, photometric="rgb", bigtiff=True),
    "big endian": lambda p: tiff(p / "a.tif", RGB, photometric="rgb", byteorder=">"),
    "tiles": lambda p: tiff(p / "a.tif", RGB, photometric="rgb", tile=(16, 16)),
    "alpha": lambda p: tiff(
        p / "a.tif", np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unassalpha"]
    ),
    "planes of colour": lambda p: tiff(
        p / "a.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
    ),
    "deflate": lambda p: tiff(p / "a.tif", RGB, photometric="rgb", compression="zlib"),
    "lzw": lambda p: Image.fromarray(RGB).save(p / "a.tif", compression="tiff_lzw"),
    "lzw turned": lambda p: Image.fromarray(np.ascontiguousarray(STORED[8](RGB))).save(
        p / "a.tif", compression="tiff_lzw", tiffinfo={274: 8}
    ),
    "lzw with a predictor": lambda p: Image.fromarray(RGB).save(
        p / "a.tif", compression="tiff_lzw", tiffinfo={317: 2}
    ),
    "palette": lambda p: palette_tiff(p / "a.tif"),
    "palette in lzw": lambda p: (
        palette_png(p / "b.png"),
        Image.open(p / "b.png").save(p / "a.tif", compression="tiff_lzw"),
        (p / "b.png").unlink(),
    ),
    "palette turned": lambda p: palette_tiff(
        p / "a.tif", STORED[5](INDICES), extratags=[(274, "H", 1, 5, True)]
    ),
    "cmyk": lambda p: cmyk(p / "a.tif"),
    "channels of ImageJ": lambda p: tiff(
        p / "a.tif", RGB.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}
    ),
    "channels of OME": lambda p: tiff(
        p / "a.ome.tif", RGB.transpose(2, 0, 1), photometric="minisblack", metadata={"axes": "CYX"}
    ),
    "channels and one depth": lambda p: tiff(
        p / "a.ome.tif", RGB.transpose(2, 0, 1)[None], photometric="minisblack",
        metadata={"axes": "ZCYX"},
    ),
    "channels before depth": lambda p: tiff(
        p / "a.ome.tif", RGB.transpose(2, 0, 1)[:, None], photometric="minisblack",
        metadata={"axes": "CZYX"},
    ),
    "samples of grey": lambda p: tiff(
        p / "a.tif", RGB, photometric="minisblack", planarconfig="contig", metadata=None
    ),
    "colours of OME": lambda p: tiff(
        p / "a.ome.tif", RGB, photometric="rgb", metadata={"axes": "YXS"}
    ),
    "a smaller copy beside": lambda p: (
        tiff(p / "a.tif", RGB, photometric="rgb", metadata=None),
        tiff(
            p / "a.tif", RGB[::2, ::2], photometric="rgb", subfiletype=1, append=True, metadata=None
        ),
    ),
    **{
        f"turned by {way}": lambda p, way=way: turned_tiff(p / "a.tif", RGB, way)
        for way in range(1, 9)
    },
}  # fmt: skip
GREYS = {
    "png": lambda p: Image.fromarray(GREY).save(p / "a.png"),
    "png with alpha": lambda p: Image.fromarray(GREY).convert("LA").save(p / "a.png"),
    "tiff": lambda p: tiff(p / "a.tif", GREY),
    "white is zero": lambda p: tiff(p / "a.tif", 255 - GREY, photometric="miniswhite"),
    "white is zero, lzw": lambda p: white_is_zero_lzw(p / "a.tif"),
    "alpha": lambda p: tiff(
        p / "a.tif", np.dstack([GREY, GREY // 2]), photometric="minisblack",
        planarconfig="contig", extrasamples=["unassalpha"], metadata=None,
    ),
    "packbits": lambda p: Image.fromarray(GREY).save(p / "a.tif", compression="packbits"),
    "one channel of ImageJ": lambda p: tiff(
        p / "a.tif", GREY[None], imagej=True, metadata={"axes": "CYX"}
    ),
}  # fmt: skip


def white_is_zero_lzw(path):
    Image.fromarray(GREY).save(path, compression="tiff_lzw", tiffinfo={262: 0})
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.photometric == tifffile.PHOTOMETRIC.MINISWHITE


@pytest.fixture
def cfg(config_for_height):
    return config_for_height(HEIGHT)


def routes(cfg, folder: Path) -> dict[str, np.ndarray]:
    """The pixels `(H, W, 3)` of the one image in a folder, by route."""
    (source,) = find_sources(folder)
    (path,) = source.paths
    (item,) = read_slices(source)
    found = {"prepare": np.atleast_3d(item.pixels)}
    record = {"file_name": str(path), "height": HEIGHT, "width": WIDTH, "annotations": []}
    found["train"] = build_mapper(cfg, True)(record)["image"].numpy().transpose(1, 2, 0)
    found["evaluate"] = build_mapper(cfg, False)(record)["image"].numpy().transpose(1, 2, 0)
    ((batch,),) = Images([path], cfg, 1)
    found["doctor, convert"] = batch["image"].numpy().transpose(1, 2, 0)
    seen = []

    def model(inputs):
        seen.extend(one["image"].numpy().transpose(1, 2, 0) for one in inputs)
        none = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(np.zeros((0, 4))),
            scores=Boxes(np.zeros((0, 4))).tensor[:, 0],
            pred_classes=Boxes(np.zeros((0, 4))).tensor[:, 0],
        )
        return [{"instances": none}] * len(inputs)  # fmt: skip

    list(Detector(model, cfg).stream(read_windowed(source, parse_window("auto"))))
    (found["predict"],) = seen
    header = read_header(path)
    assert (header.height, header.width, header.count, header.deep) == (HEIGHT, WIDTH, 1, False)
    return found


@pytest.mark.parametrize("form", COLOUR)
def test_colours_are_the_same_in_every_form_and_on_every_route(cfg, tmp_path, form):
    COLOUR[form](tmp_path)
    for route, pixels in routes(cfg, tmp_path).items():
        assert pixels.shape == RGB.shape, route
        assert np.array_equal(pixels.astype(int), RGB), route


@pytest.mark.parametrize("form", GREYS)
def test_greys_are_the_same_in_every_form_and_on_every_route(cfg, tmp_path, form):
    GREYS[form](tmp_path)
    for route, pixels in routes(cfg, tmp_path).items():
        assert np.array_equal(pixels.astype(int), np.broadcast_to(GREY[..., None], pixels.shape)), (
            route
        )


@pytest.mark.parametrize("form", ["lzw", "lzw turned", "palette in lzw", "lzw with a predictor"])
def test_pillow_stands_in_where_tifffile_lacks_a_codec(tmp_path, monkeypatch, form):
    COLOUR[form](tmp_path)
    without_codecs(monkeypatch)
    (pixels,) = read_pages(tmp_path / "a.tif", max_pixels=1 << 20)
    assert np.array_equal(pixels, RGB)


def without_codecs(monkeypatch):
    def no_codec(page, *args, **kwargs):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", no_codec)
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", no_codec)


def test_white_is_zero_by_pillow(tmp_path, monkeypatch):
    white_is_zero_lzw(tmp_path / "a.tif")
    without_codecs(monkeypatch)
    for labels in (False, True):
        (pixels,) = read_pages(tmp_path / "a.tif", max_pixels=1 << 20, labels=labels)
        assert np.array_equal(pixels, 255 - GREY if labels else GREY)


def test_brightness_and_colour_differences_become_rgb(tmp_path):
    smooth = np.stack([np.tile(np.arange(64, dtype=np.uint8) * 3, (32, 1))] * 3, axis=-1)
    for name, options in {"jpeg": {"compression": "jpeg", "quality": 95}, "raw": {}}.items():
        picture = Image.fromarray(smooth)
        picture = picture if name == "jpeg" else picture.convert("YCbCr")
        picture.save(tmp_path / f"{name}.tif", **options)
        if name == "raw" and int(PIL.__version__.partition(".")[0]) < 10:
            continue  # Pillow 9 cannot read what it wrote here
        (pixels,) = read_pages(tmp_path / f"{name}.tif", max_pixels=1 << 20)
        assert pixels.shape == smooth.shape
        assert np.abs(pixels.astype(int) - smooth).max() <= 6, name


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "?"])
def test_white_is_zero_at_every_depth_and_never_in_labels(tmp_path, dtype):
    values = (GREY > 99) if dtype == "?" else GREY.astype(dtype)
    tiff(tmp_path / "a.tif", values, photometric="miniswhite")
    (image,) = read_pages(tmp_path / "a.tif", max_pixels=1 << 20)
    (labels,) = read_pages(tmp_path / "a.tif", max_pixels=1 << 20, labels=True)
    stored = values.astype(np.uint8) * 255 if dtype == "?" else values
    assert np.array_equal(labels, stored)
    order = np.argsort(stored, axis=None, kind="stable")
    assert (np.diff(image.ravel()[order].astype(float)) <= 0).all() and image.std() > 0
    if dtype in ("u1", "u2", "?"):
        most = 65535 if dtype == "u2" else 255
        assert np.array_equal(image, most - stored)


def test_labels_keep_their_numbers_in_a_palette(tmp_path):
    palette_tiff(tmp_path / "a.tif")
    palette_png(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        (labels,) = read_pages(tmp_path / name, max_pixels=1 << 20, labels=True)
        assert np.array_equal(labels, INDICES)


def test_deep_cmyk(tmp_path):
    cmyk(tmp_path / "a.tif", np.uint16)
    (pixels,) = read_pages(tmp_path / "a.tif", max_pixels=1 << 20)
    assert pixels.dtype == np.uint16 and np.array_equal(pixels, RGB.astype(np.uint16) * 257)


@pytest.mark.parametrize("photometric", ["cielab", "iccLab", "logluv", "cfa"])
def test_colours_that_are_not_converted_are_refused(tmp_path, photometric):
    name = photometric.upper()
    tiff(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    place = content.find(struct.pack("<HHI", 262, 3, 1)) + 8
    content[place : place + 2] = struct.pack("<H", tifffile.PHOTOMETRIC[name])
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(NormdetError, match=f"colour space {name}"):
        read_pages(tmp_path / "a.tif", max_pixels=1 << 20)


def test_a_note_of_orientation_behind_the_pixels_counts_for_the_header_too(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    note = exif.tobytes()[6:]
    Image.fromarray(RGB).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    chunk = b"eXIf" + note
    chunk = struct.pack(">I", len(note)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:-12] + chunk + content[-12:])
    (pixels,) = read_pages(tmp_path / "a.png", max_pixels=1 << 20)
    header = read_header(tmp_path / "a.png")
    assert pixels.shape == (WIDTH, HEIGHT, 3) == (header.height, header.width, 3)


def test_a_file_that_is_cut_short_is_found_by_its_header(tmp_path):
    tiff(tmp_path / "a.tif", RGB, photometric="rgb")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(NormdetError, match="a.tif is cut short"):
        read_header(tmp_path / "a.tif")


def test_the_format_of_the_test_is_as_pillow_writes_png(tmp_path):
    # The palette of the PNG is what the forms above compare with.
    palette_png(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P" and np.array_equal(picture.convert("RGB"), RGB)
    assert zlib.crc32(RGB.tobytes()) == zlib.crc32(PALETTE[INDICES].astype(np.uint8).tobytes())
