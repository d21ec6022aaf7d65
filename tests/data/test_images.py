"""The images that a model sees one by one; those of more than 8 bits are not clipped."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from normdet.config import load_config
from normdet.data.image_file import SUFFIXES
from normdet.data.images import Images, find_images, named_images
from normdet.errors import NormdetError

CONFIG = "quickstart/base.yaml"


@pytest.fixture
def grey(tmp_path):
    """One ramp from 1000 to 60000, as 16-bit PNG and as TIFF."""
    ramp = np.linspace(1000, 60000, 96 * 64).astype(np.uint16).reshape(96, 64)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", ramp)
    return tmp_path


def shown(folder, window="auto", opts=()):
    cfg = load_config(CONFIG, ["INPUT.MIN_SIZE_TEST", 0, *opts])
    reader = Images(find_images([folder]), cfg, 32, window)
    tensors = [batch[0]["image"] for batch in reader]
    assert not reader.faults
    return tensors


@pytest.mark.parametrize("image_format", ["BGR", "L"])
def test_a_window_brings_deep_images_to_eight_bits(grey, image_format):
    opts = ["INPUT.FORMAT", image_format]
    if image_format == "L":
        opts += ["MODEL.PIXEL_MEAN", [100.0], "MODEL.PIXEL_STD", [50.0]]
    png, tiff = shown(grey, opts=opts)
    assert (png == tiff).all() and png.shape[0] == len(image_format)
    values = png.float()
    assert values.min() == 0 and values.max() == 255
    assert values.median() == pytest.approx(127.5, abs=1)  # clipping at 255 would leave it white


def test_without_a_window_they_keep_their_values(grey):
    for tensor in shown(grey, "none"):
        assert (tensor.min(), tensor.max()) == (1000, 60000)
    for tensor in shown(grey, "CT:1000,2000"):
        assert tensor.float().mean() > 250  # 0 to 2000 of values up to 60000


def test_eight_bits_stay_as_they_are(tmp_path):
    pixels = np.full((64, 64, 3), (10, 20, 30), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for window in ("auto", "none"):
        (tensor,) = shown(tmp_path, window)
        assert tensor[:, 0, 0].tolist() == [30, 20, 10]


def test_a_window_is_not_applied_twice(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    (tmp_path / "set" / "images").mkdir(parents=True)
    Image.fromarray(ramp).save(tmp_path / "set" / "images" / "a.png")
    raw, window = shown(tmp_path / "set", "CT:32,64")[0], "CT:32,64"
    assert raw.max() == 251  # of 0 to 64
    (tmp_path / "set" / "fingerprint.json").write_text("{}")
    assert shown(tmp_path / "set", window)[0].max() == 63


def test_what_counts_as_an_image(tmp_path):
    assert {".png", ".tif", ".webp", ".jpg"} <= set(SUFFIXES)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a.webp")
    (tensor,) = shown(tmp_path)
    assert tensor.shape == (3, 64, 64)


def test_images_are_named_by_paths_or_by_a_dataset(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    content = {
        "images": [{"id": 1, "file_name": "b.png", "width": 8, "height": 8}],
        "annotations": [], "categories": [{"id": 1, "name": "one"}],
    }  # fmt: skip
    for name, images in (("all", content["images"]), ("none", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "images": images}))
    assert named_images([tmp_path], None, tmp_path) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert named_images([], "coco:all.json:.", tmp_path) == [tmp_path / "b.png"]
    assert named_images([], None, tmp_path) == []
    for paths, dataset, said in (
        ([tmp_path], "coco:all.json:.", "not both"),
        ([], "coco:none.json:.", "--dataset coco:none.json:. has no images"),
    ):
        with pytest.raises(NormdetError, match=said):
            named_images(paths, dataset, tmp_path)
