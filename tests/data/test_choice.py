"""Channels and planes of a stack are chosen by the user, or by a rule that is reported."""

import numpy as np
import pytest
import tifffile

from normdet.data import build_mapper
from normdet.data.choice import parse_choice
from normdet.data.image_file import read_header, read_pages
from normdet.errors import NormdetError

HEIGHT, WIDTH = 32, 64


def tiff(path, pixels, **options):
    tifffile.imwrite(path, np.ascontiguousarray(pixels), **options)


@pytest.fixture
def cfg(config_for_height):
    return config_for_height(HEIGHT)


STACK = np.random.default_rng(0).integers(0, 4000, (3, 4, HEIGHT, WIDTH)).astype(np.uint16)


@pytest.mark.parametrize("axes", ["ZCYX", "TCYX"])
def test_channels_and_planes_are_chosen(tmp_path, axes):
    tiff(tmp_path / "a.ome.tif", STACK, photometric="minisblack", metadata={"axes": axes})

    def read(*choice):
        return read_pages(tmp_path / "a.ome.tif", max_pixels=1 << 20, choice=parse_choice(*choice))

    everything = np.stack(read())
    assert np.array_equal(everything, STACK[:, :3].transpose(0, 2, 3, 1))
    (middle,) = read("4", "middle")
    assert np.array_equal(middle, STACK[1, 3])
    (last,) = read("4,2,2", "3")
    assert np.array_equal(last, STACK[2][[3, 1, 1]].transpose(1, 2, 0))
    (brightest,) = read("1", "max")
    assert np.array_equal(brightest, STACK[:, 0].max(0))
    for choice, text in ((("5",), "4 channels"), (("", "4"), "3 planes")):
        with pytest.raises(NormdetError, match=text):
            read(*choice)
    assert read_header(tmp_path / "a.ome.tif").count == 3
    assert read_header(tmp_path / "a.ome.tif", choice=parse_choice("", "middle")).count == 1


def test_two_channels_become_colours_with_a_warning(tmp_path, caplog):
    from normdet.data import choice

    choice.tell_of_channels.cache_clear()
    tiff(tmp_path / "a.tif", STACK[0, :2], imagej=True, metadata={"axes": "CYX"})
    (pixels,) = read_pages(tmp_path / "a.tif", max_pixels=1 << 20)
    assert np.array_equal(pixels, STACK[0][[0, 1, 1]].transpose(1, 2, 0))
    assert "2 channels: 1,2,2 become red, green and blue" in caplog.text


def test_a_stack_is_no_image_to_train_on(cfg, tmp_path):
    tiff(tmp_path / "a.tif", STACK[:, 0], imagej=True, metadata={"axes": "ZYX"})
    record = {"file_name": str(tmp_path / "a.tif"), "height": HEIGHT, "width": WIDTH}
    with pytest.raises(NormdetError, match="holds 3 planes.*INPUT.PLANES"):
        build_mapper(cfg, False)(record)
    cfg.INPUT.PLANES = "max"
    image = build_mapper(cfg, False)(record)["image"].numpy()
    assert np.array_equal(image[0], STACK[:, 0].max(0))


@pytest.mark.parametrize("text", ["0", "1,2", "a", "1,2,3,4", "-1"])
def test_bad_choices_are_refused(text):
    with pytest.raises(NormdetError, match="channels"):
        parse_choice(text)
    with pytest.raises(NormdetError, match="planes"):
        parse_choice("", text if text != "1,2" else "1.5")
