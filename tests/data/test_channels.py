"""Channels as detectron2's own reading gives them."""

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from normdet.data.channels import to_format


@pytest.mark.parametrize("image_format", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_same_as_detectron2(image_format, shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    theirs = read_image(str(tmp_path / "a.png"), format=image_format)
    assert np.array_equal(to_format(pixels, image_format), theirs)


def test_deep_colour_in_one_channel():
    pixels = np.full((2, 3, 3), 5000, np.float32)
    assert to_format(pixels, "L").shape == (2, 3, 1)
    assert to_format(pixels, "L") == pytest.approx(np.full((2, 3, 1), 5000), rel=1e-5)
