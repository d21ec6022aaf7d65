"""Figures of norms are pictures, whatever is missing of the numbers."""

import numpy as np
import pytest
from PIL import Image

from normdet.engine.norm_figure import draw_training
from normdet.lab.doctor.figure import draw_layers
from normdet.lab.doctor.rows import Row


def shades(path) -> int:
    with Image.open(path) as picture:
        return len(np.unique(np.asarray(picture.convert("L"))))


@pytest.mark.slow
@pytest.mark.parametrize("distance", [None, 0.4])
def test_layers_are_drawn_with_and_without_distances(tmp_path, distance):
    rows = [
        Row("a", "stem", 4, distance, distance, distance, noise={1: 0.3, 2: 0.2}, dead=0.1),
        Row("a.join", "stem", 4, clamped=0.5, dead=0.0),
        Row("b", "res2", 4, distance, distance, distance),
    ]
    draw_layers(rows, 0.25, 0.5, 0.15, tmp_path / "layers.png")
    assert shades(tmp_path / "layers.png") > 10
    with Image.open(tmp_path / "layers.png") as picture:
        panels = 2 if distance is None else 3
        assert picture.height == pytest.approx(130 * (2.7 * panels + 0.6), abs=2)


def test_curves_are_drawn_where_a_stage_has_them(tmp_path):
    curves = {"clamped": {"res2": {"a": [(20, 0.1), (40, 0.2)]}}, "rms": {"FPN": {"b": [(20, 1)]}}}
    draw_training(curves, ["res2", "FPN"], tmp_path / "training.png")
    assert shades(tmp_path / "training.png") > 10
