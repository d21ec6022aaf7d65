"""Colours and markers that can be told apart."""

import numpy as np
import pytest
from PIL import ImageColor

from normdet.files import style
from normdet.files.style import CLASS_COLOURS


def test_many_series_can_be_told_apart():
    styles = [tuple(style.run_style(index).values()) for index in range(24)]
    assert len(set(styles)) == 24


def test_no_two_of_the_colours_are_alike():
    color = pytest.importorskip("skimage.color")
    rgb = np.array([ImageColor.getrgb(name) for name in CLASS_COLOURS]) / 255
    lab = color.rgb2lab(rgb[None])[0]
    apart = color.deltaE_ciede2000(lab[:, None], lab[None])
    assert apart[~np.eye(len(lab), dtype=bool)].min() > 17
