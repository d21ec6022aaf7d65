"""The embedded nuclei: cut once, whole or not at all, nothing in both parts."""

import json
import socket

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from normdet.data import load_coco, quickstart
from normdet.errors import NormdetError


def test_tiles_hold_the_pixels_and_masks_of_their_place(tmp_path):
    image, mask = quickstart.image_and_labels()
    folder = quickstart.prepare(tmp_path / "quickstart")
    for part in ("train", "test"):
        dataset = load_coco(folder / f"{part}.json", folder / "images")
        assert not dataset.dropped and dataset.classes == ["nucleus"]
        for record in dataset.records:
            top, left = (int(v) for v in record["file_name"][:-4].split("_")[-2:])
            window = np.s_[top : top + record["height"], left : left + record["width"]]
            assert np.array_equal(np.asarray(Image.open(record["file_name"])), image[window])
            assert (left >= quickstart.SPLIT_COLUMN) == (part == "test")
            assert part == "test" or left + record["width"] <= quickstart.SPLIT_COLUMN
            union = sum(mask_util.decode(o["segmentation"]) for o in record["annotations"])
            sizes = {k: (mask[window] == k).sum() for k in np.unique(mask[window])}
            kept = [k for k in sizes if k and sizes[k] >= quickstart.MIN_PIXELS]
            assert np.array_equal(union, np.isin(mask[window], kept))


def test_it_is_made_once(tmp_path):
    quickstart.prepare(tmp_path / "quickstart")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "quickstart").rglob("*")}
    quickstart.prepare(tmp_path / "quickstart")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "quickstart").rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart.json, "dumps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickstart.prepare(tmp_path / "quickstart")
    assert list(tmp_path.iterdir()) == []


def test_it_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("asked for a network"))
    assert (quickstart.prepare(tmp_path / "quickstart") / "train.json").is_file()


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "mine.txt").write_text("mine")
    with pytest.raises(NormdetError, match="holds no quickstart data"):
        quickstart.prepare(tmp_path / "quickstart")
    assert (tmp_path / "quickstart" / "mine.txt").read_text() == "mine"


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMDET_DATA", str(tmp_path))
    assert quickstart.default_folder() == tmp_path / "quickstart"
    monkeypatch.delenv("NORMDET_DATA")
    assert quickstart.default_folder() == quickstart.Path("datasets/quickstart")


def test_the_real_image_has_its_nuclei(quickstart_data):
    counts = {}
    for part in ("train", "test"):
        content = json.loads((quickstart_data / f"{part}.json").read_text())
        counts[part] = (len(content["images"]), len(content["annotations"]))
    assert counts == {"train": (28, 279), "test": (2, 43)}
