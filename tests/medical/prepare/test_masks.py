"""The meaning of label images, and masks encoded as by pycocotools."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from normdet.errors import NormdetError
from normdet.medical.prepare.masks import Labels, as_labels, components, encode_labels, objects_of


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (13, 17), (0, 5)])
def test_one_pass_encodes_as_pycocotools_does(shape, dtype):
    labels = np.random.default_rng(1).integers(0, 5, shape).astype(dtype)
    encoded = encode_labels(labels)
    assert set(encoded) == set(np.unique(labels)) - {0}
    for value, rle in encoded.items():
        expected = mask_util.encode(np.asfortranarray(labels == value, dtype=np.uint8))
        assert rle == expected


def test_pieces_that_touch_at_a_corner_are_one():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)
    assert components(mask).max() == 2


def test_values_or_components_are_instances():
    labels = np.array([[1, 1, 0, 2], [0, 0, 0, 0], [1, 0, 0, 2]])
    values = [np.array([1, 2])]

    def named(rule, values=values):
        return sorted(entry["category"] for entry in objects_of(labels, rule.settle(values)))

    assert named(Labels("values")) == named(Labels("auto")) == ["object", "object"]
    assert named(Labels("components")) == ["label 1", "label 1", "label 2", "label 2"]
    assert named(Labels("auto", ("a", "b"))) == ["a", "a", "b", "b"]
    assert named(Labels("components", ("a",))) == ["a"] * 4
    many = np.array([[1, 0, 3]])
    with pytest.raises(NormdetError, match="label value 3 has no name"):
        objects_of(many, Labels("components", ("liver", "cyst")))
    with pytest.raises(NormdetError, match="several names for values"):
        Labels("values", ("liver", "cyst"))


@pytest.mark.parametrize(
    "files, instances, names",
    [
        ([[255], [255]], "components", "object"),
        # No file has two values, but two occur, so they may be two classes.
        ([[1], [], [2]], "components", "label 1"),
        ([[1], [1, 2]], "values", "object"),
    ],
)
def test_a_source_is_read_by_one_rule(files, instances, names):
    rule = Labels().settle(np.array(values) for values in files)
    assert rule.instances == instances
    assert {entry["category"] for entry in objects_of(np.array([[0, 1]]), rule)} == {names}


def test_colours_and_floats_as_labels():
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[0] = 1, 0, 0
    colours[1, 1] = 0, 0, 1
    assert as_labels(colours, "a").tolist() == [[65536, 65536], [0, 1]]
    assert as_labels(np.float32([[0, 3]]), "a").dtype == np.int64
    for values in ([[0.5]], [[-1.0]], [[np.nan]]):
        with pytest.raises(NormdetError, match="is no label image"):
            as_labels(np.float32(values), "a")
