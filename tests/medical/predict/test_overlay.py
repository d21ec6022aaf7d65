"""The picture of the objects found."""

import numpy as np
import pytest
from PIL import ImageColor

from normdet.data.rle import Piece
from normdet.evaluation.tiles import Detection
from normdet.files.style import CLASS_COLOURS
from normdet.medical.predict.overlay import BAR, LARGEST, SMALLEST, draw


def disk(x, y, radius, score=0.9, category=0, has_mask=True):
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    piece = Piece(x - radius, y - radius, rows**2 + columns**2 <= radius**2)
    return Detection(tuple(map(float, piece.box)), score, category, piece, has_mask)


def painted(picture, colour) -> np.ndarray:
    pixels = np.asarray(picture)[BAR:]
    return (pixels == ImageColor.getrgb(colour)).all(-1)


def test_the_outline_lies_on_the_edge_in_the_colour_of_the_class():
    grey = np.full((125, 125), 60, np.uint8)
    one = disk(50, 40, 30, category=1)
    picture = draw(grey, grey.shape, [one], ["a", "b"], "name")
    assert picture.size == (1000, 1000 + BAR)
    rows, columns = np.nonzero(painted(picture, CLASS_COLOURS[1]))
    distance = np.hypot(columns / 8 - 50.5, rows / 8 - 40.5)
    assert len(rows) > 500 and np.abs(distance - 30).max() < 1.2
    assert not painted(picture, CLASS_COLOURS[0]).any()


@pytest.mark.parametrize("radius, written", [(30, True), (2, False)])
def test_scores_are_written_where_there_is_room(radius, written):
    grey = np.full((400, 400), 60, np.uint8)
    inside = np.s_[BAR + 480 : BAR + 520, 480:520]
    picture = draw(grey, grey.shape, [disk(200, 200, radius)], ["a"], "")
    assert (np.asarray(picture)[inside].min(-1) == 255).any() == written


def test_a_box_is_drawn_where_there_is_no_mask():
    grey = np.full((500, 500), 60, np.uint8)
    picture = draw(grey, grey.shape, [disk(200, 200, 50, has_mask=False)], ["a"], "")
    rows, columns = np.nonzero(painted(picture, CLASS_COLOURS[0]))
    assert abs(rows.min() - 300) < 3 and abs(rows.max() - 502) < 3
    assert abs(columns.min() - 300) < 3 and abs(columns.max() - 502) < 3


@pytest.mark.parametrize("shape", [(20, 30), (1, 4000), (5000, 300), (1000, 1000, 3)])
def test_any_size_becomes_a_picture_of_a_size_to_look_at(shape):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, shape, dtype=np.uint8)
    picture = draw(pixels, shape[:2], [], ["a"], "ein sehr langer Name " * 40)
    longest = max(picture.width, picture.height - BAR)
    assert min(8 * max(shape[:2]), SMALLEST) <= longest <= LARGEST


def test_a_picture_of_every_second_pixel_has_its_outlines_in_the_same_places():
    grey = np.full((4000, 4000), 60, np.uint8)
    one = disk(1000, 3000, 300)
    whole, half = (draw(p, grey.shape, [one], ["a"], "") for p in (grey, grey[::2, ::2]))
    assert np.array_equal(painted(whole, CLASS_COLOURS[0]), painted(half, CLASS_COLOURS[0]))


def test_twenty_classes_have_twenty_colours_in_every_picture():
    grey = np.full((200, 500), 60, np.uint8)
    names = [f"class {number}" for number in range(20)]
    places = [(50 * (number % 10) + 20, 20 + 90 * (number // 10)) for number in range(20)]
    disks = [disk(*place, 15, category=number) for number, place in enumerate(places)]
    picture = draw(grey, grey.shape, disks, names, "")
    for (x, y), colour in zip(places, CLASS_COLOURS[:20], strict=True):
        rows, columns = np.nonzero(painted(picture, colour))
        assert len(rows) > 50
        assert abs(columns.mean() / 2 - x) < 2 and abs(rows.mean() / 2 - y) < 2


def test_the_class_is_written_where_there_are_several():
    grey = np.full((250, 250), 60, np.uint8)
    white = [
        (np.asarray(draw(grey, grey.shape, [disk(125, 125, radius)], names, ""))[BAR:] == 255)
        .all(-1).sum()
        for names in (["nucleus"], ["nucleus", "cell"])
        for radius in (60, 8)
    ]  # fmt: skip
    one, one_small, several, several_small = white
    assert several > 2 * one > 0 and several_small == one_small > 0
