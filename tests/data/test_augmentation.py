"""The eight symmetries, for images, boxes and masks alike."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from normdet.data.augmentation import RandomD4, TransposeTransform


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)  # noqa: NPY002 - what detectron2's augmentations draw from


def test_all_eight_symmetries_are_drawn():
    image = np.arange(12).reshape(3, 4, 1)
    expected = {
        np.rot90(side, turns)[..., 0].tobytes() + bytes([turns % 2])
        for side in (image, image[:, ::-1])
        for turns in range(4)
    }
    drawn = set()
    for _ in range(200):
        result = RandomD4().get_transform(image).apply_image(image)
        drawn.add(np.ascontiguousarray(result)[..., 0].tobytes() + bytes([result.shape[0] == 4]))
    assert drawn == expected and len(drawn) == 8


def test_boxes_follow_the_pixels():
    for _ in range(50):
        image = np.zeros((20, 30), np.uint8)
        image[4:9, 10:13] = 1
        transform = RandomD4().get_transform(image)
        y, x = np.nonzero(transform.apply_image(image))
        box = transform.apply_box(np.array([[10.0, 4.0, 13.0, 9.0]]))[0]
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_transpose_undoes_itself():
    image = np.arange(105.0).reshape(5, 7, 3)
    transform = T.TransformList([TransposeTransform(), TransposeTransform().inverse()])
    assert np.array_equal(transform.apply_image(image), image)
