"""Pictures: matches as COCO counts them, and files that are pictures."""

import numpy as np
import pytest
from PIL import Image

from normdet.lab.report import figures


def _boxes(*corners):
    masks = np.zeros((len(corners), 20, 30), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


@pytest.mark.parametrize(
    "predicted, found, covered",
    [
        ([], [], [0, 0]),
        ([(0, 0, 10, 10)], [1], [1, 0]),
        ([(0, 5, 10, 15)], [0], [0, 0]),  # IoU 1/3
        ([(0, 0, 10, 9), (0, 0, 10, 10)], [1, 0], [1, 0]),  # taken by the more certain one
        ([(10, 0, 20, 10), (0, 1, 10, 10)], [1, 1], [1, 1]),
    ],
)
def test_a_nucleus_is_found_once_and_by_the_most_certain(predicted, found, covered):
    truth = _boxes((0, 0, 10, 10), (10, 0, 20, 10))
    result = figures.match(truth, _boxes(*predicted))
    assert [part.tolist() for part in result] == [
        [bool(value) for value in found],
        [bool(value) for value in covered],
    ]


def test_nothing_true_leaves_everything_false():
    found, covered = figures.match(_boxes(), _boxes((0, 0, 5, 5)))
    assert found.tolist() == [False] and covered.tolist() == []


def test_scenes_and_curves_are_drawn(tmp_path):
    truth = _boxes((0, 0, 10, 10), (10, 0, 20, 10))
    image = np.arange(600, dtype=np.uint8).reshape(20, 30)
    scene = figures.Scene(image, truth, {"GN": truth[:1], "FRN": _boxes()})
    figures.draw_scenes([scene, scene], {"GN": "GN", "FRN": "FRN"}, tmp_path / "scenes.png")
    history = [{"iteration": 19, "total_loss": 2.0}, {"iteration": 39, "bbox/AP": 10.0}]
    figures.draw_curves({"GN": history, "FRN": []}, tmp_path / "curves.png")
    for name in ("scenes.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_intervals_and_courses_are_drawn(tmp_path):
    series = {
        f"norm {i}": [(1, 30.0 + i, 29.0, 31.0 + 50 * i), (4, 31.0, None, None)] for i in range(9)
    }
    panel = figures.Panel("AP", "AP", series)
    figures.draw_over_batch([panel, panel], tmp_path / "ap.png")
    curves = [figures.Curve("GN", [(2, 3.0), (4, 2.0)], [(4, 10.0)]), figures.Curve("BN", [], [])]
    figures.draw_training({"1 image": curves, "2 images": curves[1:]}, tmp_path / "training.png")
    for name in ("ap.png", "training.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_a_legend_of_long_names_stays_in_the_picture():
    figure = figures.Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    names = [f"a norm with a long name, {index}" for index in range(7)]
    lines = [axes.plot([0, 1], [0, index])[0] for index in range(7)]
    figures.legend_below(figure, lines, names)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and legend._ncols == 2


def test_a_very_wide_interval_does_not_flatten_the_means():
    panel = figures.Panel("", "", {"a": [(1, 30.0, 0.0, 90.0)], "b": [(1, 32.0, 31.0, 33.0)]})
    low, high = figures.frame(panel)
    assert 20 < low < 30 and 32 < high < 45
    costs = figures.Panel("", "", {"a": [(1, 30.0, None, None)]}, from_zero=True)
    assert figures.frame(costs)[0] == 0
