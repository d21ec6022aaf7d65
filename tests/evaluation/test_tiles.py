"""Tiles and their merging, on objects whose every pixel is known."""

import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest

from normdet.data.rle import Piece, runs
from normdet.errors import NormdetError
from normdet.evaluation.tiles import Detection, check_tiling, merge, tile_boxes


def found_in(labels: np.ndarray, tile, score=0.9, category=0) -> list[Detection]:
    """The detections of a perfect detector in a tile of `labels`."""
    x0, y0, x1, y1 = tile
    view = labels[y0:y1, x0:x1]
    result = []
    for label in np.unique(view[view > 0]):
        piece = Piece.of(view == label, x0, y0)
        result.append(Detection(tuple(map(float, piece.box)), score, category, piece, True))
    return result


def scene(height: int, width: int, shapes) -> np.ndarray:
    """Ellipses `(x, y, radius_x, radius_y)` as labels 1, 2, ..."""
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), int)
    for label, (x, y, rx, ry) in enumerate(shapes, start=1):
        labels[((columns - x) / rx) ** 2 + ((rows - y) / ry) ** 2 <= 1] = label
    return labels


def check_whole(labels: np.ndarray, size: int, overlap: int) -> None:
    tiles = tile_boxes(*labels.shape, size, overlap)
    result = merge(tiles, [found_in(labels, tile) for tile in tiles])
    expected = sorted((labels == label).tobytes() for label in np.unique(labels[labels > 0]))
    frame = (0, 0, labels.shape[1], labels.shape[0])
    assert len(result) == len(expected)
    assert sorted(one.piece.filled(frame).tobytes() for one in result) == expected


@pytest.mark.parametrize("size, overlap", [(64, 16), (64, 32), (100, 12), (300, 64)])
def test_tiles_cover_the_image_and_overlap(size, overlap):
    covered = np.zeros((257, 190), int)
    boxes = tile_boxes(257, 190, size, overlap)
    for x0, y0, x1, y1 in boxes:
        assert x1 - x0 == min(size, 190) and y1 - y0 == min(size, 257)
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    lefts = sorted({box[0] for box in boxes})
    assert all(b - a <= size - overlap for a, b in itertools.pairwise(lefts))


def test_objects_across_seams_come_back_whole_and_once():
    # Across one seam, across a corner of four tiles, inside an overlap, over three tiles in a row,
    # at the image's edge, and a sliver of another tile.
    labels = scene(160, 160, [(56, 20, 14, 8), (56, 56, 12, 12), (56, 100, 5, 5), (80, 130, 60, 9),
                              (3, 60, 6, 6), (20, 20, 5, 5), (130, 20, 20, 15), (110, 70, 12, 6)])
    check_whole(labels, 64, 16)


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes_come_back_exactly(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(100, 260, 2)
    labels = np.zeros((height, width), int)
    for label in range(1, 40):
        rx, ry = rng.uniform(3, 30, 2)
        one = scene(height, width, [(rng.uniform(0, width), rng.uniform(0, height), rx, ry)]) > 0
        # Keep objects apart, so that a seam leaves one part of each.
        if not (labels[grown(one)] > 0).any():
            labels[one] = label
    check_whole(labels, 96, int(rng.integers(24, 48)))


def grown(mask: np.ndarray) -> np.ndarray:
    out = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            out |= np.roll(mask, step, axis)
    return out


def test_slightly_different_views_of_two_tiles_count_once_with_the_better_score():
    tiles = tile_boxes(64, 100, 64, 28)
    (left, right) = tiles
    first = Detection((38, 10, 58, 30), 0.6, 0, Piece(38, 10, np.ones((20, 20), bool)), True)
    second = Detection((40, 12, 60, 32), 0.8, 0, Piece(40, 12, np.ones((20, 20), bool)), True)
    (one,) = merge([left, right], [[first], [second]])
    assert one.score == 0.8 and one.box == (38, 10, 60, 32)
    assert one.piece.area == 20 * 20 * 2 - 18 * 18


def test_classes_are_not_mixed():
    tiles = tile_boxes(64, 100, 64, 28)
    piece = Piece(44, 10, np.ones((10, 10), bool))
    both = [Detection((44, 10, 54, 20), 0.5, category, piece, True) for category in (0, 1)]
    assert {one.category for one in merge(tiles, [[both[0]], [both[1]]])} == {0, 1}


def test_a_blob_over_two_objects_of_another_tile_does_not_add_one():
    tiles = tile_boxes(64, 100, 64, 28)
    blob = Detection((42, 10, 58, 20), 0.9, 0, Piece(42, 10, np.ones((10, 16), bool)), True)
    halves = [
        Detection((x, 10, x + 8, 20), 0.7, 0, Piece(x, 10, np.ones((10, 8), bool)), True)
        for x in (42, 50)
    ]
    assert len(merge(tiles, [[blob], halves])) == 1
    better = [Detection(h.box, 0.95, 0, h.piece, True) for h in halves]
    assert [one.piece.area for one in merge(tiles, [[blob], better])] in ([80, 80], [160])


def test_two_objects_in_both_tiles_stay_two():
    tiles = tile_boxes(64, 100, 64, 28)
    wide, thin = (
        Detection(tuple(map(float, box)), score, 0, Piece(*box[:2], np.ones(shape, bool)), False)
        for box, score, shape in (
            ((42, 10, 58, 30), 0.9, (20, 16)),
            ((50, 12, 60, 18), 0.8, (6, 10)),
        )
    )
    assert len(merge(tiles, [[wide, thin], [wide, thin]])) == 2
    assert len(merge(tiles, [[wide], [thin]])) == 1


def test_boxes_cut_by_a_seam_are_joined_to_one_rectangle():
    tiles = tile_boxes(64, 100, 64, 28)
    left = Detection((20, 10, 64, 30), 0.9, 0, Piece(20, 10, np.ones((20, 44), bool)), False)
    right = Detection((36, 11, 80, 31), 0.8, 0, Piece(36, 11, np.ones((20, 44), bool)), False)
    (one,) = merge(tiles, [[left], [right]])
    assert one.box == (20, 10, 80, 31) and one.piece.area == 60 * 21


def test_a_tile_of_nothing_and_one_tile():
    tiles = tile_boxes(64, 100, 64, 28)
    assert merge(tiles, [[], []]) == []
    low, high = (
        Detection((0, 0, 4, 4), score, 0, Piece(0, 0, np.ones((4, 4), bool)), True)
        for score in (0.1, 0.9)
    )
    assert merge(tile_boxes(64, 64, 0, 0), [[low, high]]) == [high, low]


@pytest.mark.parametrize("size, overlap", [(-1, 0), (64, 0), (64, 40), (512, 5)])
def test_sizes_that_cannot_be_merged_are_refused(size, overlap):
    with pytest.raises(NormdetError, match="overlap must be"):
        check_tiling(size, overlap)


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((37, 53)) < (0.02, 0.5, 0.98, 0, 1)[seed]
    theirs = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert Piece.of(mask).rle(37, 53) == {"size": [37, 53], "counts": theirs["counts"].decode()}
    assert sum(runs(theirs["counts"])) == mask.size
    back = Piece.from_rle(theirs)
    assert np.array_equal(back.filled((0, 0, 53, 37)), mask)
    assert back.area == mask.sum()
