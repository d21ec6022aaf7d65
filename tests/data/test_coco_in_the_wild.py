"""Deviations from COCO's form are read as they are meant, and reported."""

import copy
import json
import logging

import numpy as np
import pytest
from PIL import Image

from normdet.data import load_coco
from normdet.errors import NormdetError

POLYGON = [2, 3, 12, 3, 12, 13, 2, 13]


@pytest.fixture
def wild(tmp_path):
    """Two images with one object each, as (content, load)."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "images" / name)
    size = {"height": 20, "width": 30}
    content = {
        "images": [
            {"id": n, "file_name": name, **size} for n, name in enumerate(("a.png", "b.png"), 1)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 3, 10, 10], "area": 100,
             "iscrowd": 0, "segmentation": [list(POLYGON)]}
            for n in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }  # fmt: skip

    def load(**options):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(content))
        return load_coco(path, tmp_path / "images", **options)

    return content, load


def objects(dataset):
    return [entry for record in dataset.records for entry in record["annotations"]]


def test_ids_of_several_types_are_compared_by_value(wild):
    content, load = wild
    good = load()
    for kind in (str, float):
        for image in content["images"]:
            image["id"] = kind(int(image["id"]))
        assert [r["annotations"] for r in load().records] == [
            r["annotations"] for r in good.records
        ]
    # The user's own ids come back.
    content["images"][0]["id"], content["annotations"][0]["image_id"] = "left", "left"
    assert {r["image_id"] for r in load().records} == {"left", 2}


@pytest.mark.parametrize("key", ["id", "area", "iscrowd"])
def test_what_training_does_not_need_may_be_missing(wild, key):
    content, load = wild
    for entry in content["annotations"]:
        del entry[key]
    assert len(objects(load())) == 2


def test_ids_of_annotations_may_repeat(wild):
    # Nothing compares them, since evaluation numbers the objects itself.
    content, load = wild
    content["annotations"][1]["id"] = 1
    assert len(objects(load())) == 2


def test_sizes_may_be_whole_floats_or_missing(wild):
    content, load = wild
    content["images"][0].update(height=20.0, width=30.0)
    for key in ("height", "width"):
        del content["images"][1][key]
    assert [(r["height"], r["width"]) for r in load().records] == [(20, 30)] * 2
    content["images"][0]["height"] = 20.5
    with pytest.raises(NormdetError, match="image 1 has no height"):
        load()


def test_one_side_may_be_missing_and_masks_empty_objects(wild):
    content, load = wild
    del content["images"][0]["height"]
    content["annotations"][0]["segmentation"] = {}
    first, second = load().records
    assert (first["height"], first["width"]) == (20, 30)
    assert "segmentation" not in first["annotations"][0]
    assert "segmentation" in second["annotations"][0]


def test_boxes_as_objects_flat_polygons_and_two_corners(wild):
    content, load = wild
    one, two = content["annotations"]
    one.update(bbox={"x": 2, "y": 3, "width": 10, "height": 10}, segmentation=list(POLYGON))
    two.update(segmentation=[[2, 3, 12, 13]])
    dataset = load()
    first, second = objects(dataset)
    assert first["bbox"] == [2, 3, 10, 10] and first["segmentation"] == [POLYGON]
    assert "segmentation" not in second
    said = " ".join(dataset.notes)
    assert "objects, not lists" in said and "without the list" in said and "two corners" in said


def test_a_missing_box_is_taken_from_the_mask(wild):
    content, load = wild
    for entry in content["annotations"]:
        entry["bbox"] = None
    assert [entry["bbox"] for entry in objects(load())] == [[2, 3, 10, 10]] * 2


def test_crowds_marked_by_true_and_false(wild):
    content, load = wild
    content["annotations"][0]["iscrowd"] = True
    assert [entry["iscrowd"] for entry in objects(load())] == [1, 0]


def test_a_category_that_only_groups_others_is_no_class(wild):
    content, load = wild
    content["categories"] = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "cell", "supercategory": "cells"},
    ]
    dataset = load()
    assert dataset.classes == ["cell"] and "'cells' only holds the others" in dataset.notes[0]
    content["annotations"][0]["category_id"] = 0  # now it has an object
    assert load().classes == ["cells", "cell"]


def test_boxes_as_corners_are_counted_named_and_refused(wild):
    content, load = wild
    for entry in content["annotations"]:
        entry["bbox"] = [2, 3, 12, 13]
    content["annotations"][1]["bbox"] = [2, 3, 30, 30]
    with pytest.raises(NormdetError, match="2 of 2 boxes.*in an image of 30x20.*MAX_BOX_FAULTS"):
        load()
    content["annotations"][0].update(bbox=[2, 3, 22, 17], segmentation=[[2, 3, 22, 3, 22, 17]])
    content["annotations"][1].update(bbox=[2, 3, 22, 17], segmentation=[[2, 3, 22, 3, 22, 17]])
    with pytest.raises(NormdetError, match="2 of 2 boxes.*as corners.*most would fit"):
        load()
    reported = []
    with pytest.raises(NormdetError):
        load(report=reported.append)
    assert "2 of 2 boxes disagree" in reported[0]
    assert "2 of 2 boxes disagree" in load(max_box_faults=1).notes[0]


def test_boxes_as_shares_and_boxes_outside_are_counted_and_refused(wild):
    content, load = wild
    for entry in content["annotations"]:
        del entry["segmentation"], entry["area"]
        entry["bbox"] = [2 / 30, 3 / 20, 10 / 30, 10 / 20]
    told = "2 of 2 boxes .*in the first pixel.*shares of the image, from 0 to 1: pixels are wanted"
    with pytest.raises(NormdetError, match=told):
        load()
    for entry in content["annotations"]:
        entry["bbox"] = [40, 3, 10, 10]
    with pytest.raises(NormdetError, match=r"2 of 2 boxes .*leave .*\(outside the image\)"):
        load()
    content["annotations"][0]["bbox"] = [0, 0, 1, 1]  # one small box in the corner may be
    content["annotations"][1]["bbox"] = [2, 3, 10, 10]
    assert len(objects(load(max_box_faults=0.5))) == 2


def test_boxes_that_are_off_by_rounding_are_not_reported(wild):
    content, load = wild
    content["annotations"][0]["bbox"] = [1.2, 2.1, 11.4, 11.9]
    content["annotations"][1].update(bbox=[-1.5, -1, 33, 22], segmentation=None)
    assert load().notes == []


def test_pixels_to_ignore(wild):
    content, load = wild
    content["images"][0]["ignore"] = {"size": [20, 30], "counts": [0, 40, 560]}
    content["images"][1]["ignore"] = {"size": [9, 9], "counts": [81]}
    with pytest.raises(NormdetError, match="image 2 has an ignore that is not an RLE"):
        load()
    del content["images"][1]["ignore"]
    first, second = load().records
    assert first["ignore"]["size"] == [20, 30] and "ignore" not in second


def test_bad_images_are_listed_together(wild, caplog):
    content, load = wild
    broken = copy.deepcopy(content["annotations"][0]) | {"id": 9, "image_id": 77}
    content["annotations"].append(broken)
    content["images"].append({"id": 3, "file_name": "gone.png", "height": 2, "width": 2})
    reported = []
    with caplog.at_level(logging.WARNING):
        load(report=reported.append)
    assert any("gone.png" in one for one in reported)
    assert any("unknown image_id 77" in one for one in reported)
