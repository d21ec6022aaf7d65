"""Splits keep each patient's images together."""

import numpy as np
import pytest

from normdet.errors import NormdetError
from normdet.medical.prepare.split import assign, divided


def test_groups_are_not_divided():
    rng = np.random.default_rng(0)
    groups = [f"p{number}" for number in rng.integers(0, 40, 500)]
    splits = assign(groups, [None] * 500, 0.2, 0.1, seed=3)
    assert not divided(groups, splits)
    assert 0.14 < splits.count("val") / 500 < 0.26 and 0.04 < splits.count("test") / 500 < 0.16
    assert splits == assign(groups, [None] * 500, 0.2, 0.1, seed=3)
    assert splits != assign(groups, [None] * 500, 0.2, 0.1, seed=4)
    # A patient's key does not matter, since each run draws new ones.
    assert splits == assign([f"x{group}" for group in groups], [None] * 500, 0.2, 0.1, seed=3)


def test_small_and_given_splits():
    assert assign(["a"], [None], 0.5, 0, 0) == ["train"]
    assert sorted(assign(["a", "b"], [None] * 2, 0.01, 0, 0)) == ["train", "val"]
    assert assign(["a", "b"], [None] * 2, 0, 0, 0) == ["train", "train"]
    assert assign(["a", "a", "b"], ["val", "train", None], 0.2, 0, 0) == ["val", "train", "train"]
    assert divided(["a", "a", "b"], ["val", "train", "train"]) == ["a"]
    # A single split counts as none, since some images must remain for validation.
    assert "val" in assign(["a", "b"], ["train"] * 2, 0.2, 0, 0)
    # The source's test images are not trained on if there are others.
    assert assign(["a", "b"], ["test", None], 0.2, 0, 0) == ["test", "train"]


@pytest.mark.parametrize("given, stated", [(["val", "test"], ()), (["val"] * 2, ("train", "val"))])
def test_a_source_without_training_images_is_refused(given, stated):
    with pytest.raises(NormdetError, match="no image is left to train on: .* in (test and )?val$"):
        assign(["a", "b"], given, 0.2, 0, 0, stated)
