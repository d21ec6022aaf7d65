"""Folders of classes: what trains, what is held out, what is refused."""

import shutil

import pytest

from normdet.errors import NormdetError
from normdet.pretrain import main
from normdet.pretrain.images import find_labelled

from .tiny import draw


def test_train_and_val_may_be_given(data, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(data, tmp_path / part)
    found = find_labelled(tmp_path)
    assert found.classes == ["dark", "light"] and len(found.train) == len(found.val) == 24
    shutil.rmtree(tmp_path / "val" / "dark")
    draw(tmp_path / "val" / "grey", 90, 1)
    with pytest.raises(NormdetError, match="different classes: dark, grey"):
        find_labelled(tmp_path)


def test_every_image_trains_or_is_held_out(data):
    found = find_labelled(data)
    assert sorted(found.train + found.val) == sorted({*found.train, *found.val})
    assert len(found.train) == 22 and {label for _, label in found.val} == {0, 1}


def _empty_class(folder):
    draw(folder / "full", 20, 3)
    (folder / "empty").mkdir()


def _one_image(folder):
    draw(folder / "a", 20, 3)
    draw(folder / "b", 20, 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is no folder"),
        (lambda folder: folder.mkdir(), "a folder for each class"),
        (lambda folder: draw(folder / "one", 20, 3), "has one class, one"),
        (_empty_class, "empty"),
        (_one_image, "b has one image"),
    ],
)
def test_folders_without_classes_are_refused(tmp_path, make, said):
    make(tmp_path / "data")
    with pytest.raises(NormdetError, match=said):
        main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
