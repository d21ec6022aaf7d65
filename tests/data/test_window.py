"""Windows against the formulas of MONAI and nnU-Net, written out."""

from pathlib import Path

import numpy as np
import pytest

from normdet.data.slices import Slice
from normdet.data.window import Window, apply_window, parse_window, window_limits
from normdet.errors import NormdetError


def as_slice(pixels, window=None):
    """A slice with nothing but pixels."""
    return Slice(np.asarray(pixels), "a", None, None, window, Path("a"))


@pytest.mark.parametrize("text", ["auto", "none", "file", "percentile:1,99", "CT:40,400"])
def test_texts_mean_what_they_print(text):
    assert parse_window(str(parse_window(text))) == parse_window(text)


@pytest.mark.parametrize(
    "text", ["", "CT", "CT:40", "CT:40,0", "CT:a,b", "percentile:9,1", "percentile:0,101", "lung",
             "CT:nan,3", "none:1,2"]
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(NormdetError, match="one of auto, percentile"):
        parse_window(text)


def test_ct_is_monais_scale_intensity_range():
    hu = np.linspace(-1024, 3071, 4096).astype(np.float32).reshape(64, 64)
    a_min, a_max = -160.0, 240.0
    expected = np.clip((hu.astype(float) - a_min) / (a_max - a_min), 0, 1) * 255
    ours = apply_window(hu, window_limits(parse_window("CT:40,400"), []))
    assert ours.dtype == np.uint8 and np.abs(ours - expected).max() <= 0.51


def test_percentiles_are_of_all_slices_and_robust():
    rng = np.random.default_rng(0)
    slices = [as_slice(rng.normal(1000 * i, 10, (64, 64))) for i in range(3)]
    slices[0].pixels[0, :2] = 1e9, np.nan
    low, high = window_limits(parse_window("percentile"), iter(slices))
    both = np.concatenate([s.pixels.reshape(-1) for s in slices])
    assert (low, high) == tuple(np.nanpercentile(both, (0.5, 99.5)))
    assert high < 2100


def test_auto():
    grey = as_slice(np.array([[3, 200]], np.uint8))
    assert window_limits(Window("auto"), [grey]) is None
    assert apply_window(grey.pixels, None) is grey.pixels
    deep = np.array([[0, 1000]], np.uint16)
    assert window_limits(Window("auto"), [as_slice(deep, (100, 50))]) == (75, 125)
    low, high = window_limits(Window("auto"), [as_slice(deep)])
    assert 0 <= low < high <= 1000


def test_a_file_without_a_window_says_so():
    with pytest.raises(NormdetError, match="recommends no window: give --window percentile"):
        window_limits(Window("file"), [as_slice(np.zeros((2, 2), np.uint16))])


def test_none_keeps_every_value():
    deep = np.array([[0, 65535]], np.uint16)
    assert apply_window(deep, window_limits(Window("none"), [as_slice(deep)])) is deep


@pytest.mark.parametrize("value", [0, 7, -1024.5, 1e9])
def test_constant_images_do_not_divide_by_zero(value):
    flat = np.full((4, 4), value, np.float32)
    out = apply_window(flat, window_limits(Window("percentile"), [as_slice(flat)]))
    assert out.dtype == np.uint8 and len(np.unique(out)) == 1


def test_not_a_number_is_black_and_infinity_the_end():
    values = np.array([[np.nan, np.inf, -np.inf, 50]], np.float32)
    assert apply_window(values, (0, 100)).tolist() == [[0, 255, 0, 128]]
    assert window_limits(Window("percentile"), [as_slice(values * np.nan)]) == (0, 1)
