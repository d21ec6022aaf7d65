"""COCO files: the same records as detectron2 reads, and a sentence for every bad one."""

import json
import logging
import re

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data.datasets import load_coco_json
from PIL import Image

from normdet.data import load_coco
from normdet.data.rle import runs
from normdet.errors import NormdetError


@pytest.fixture
def tiny(tmp_path):
    """A valid file of two images and three boxes, as (content, write)."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "images" / name)
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 2, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 10]},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5, 5, 4, 6]},
            {"id": 3, "image_id": 2, "category_id": 3, "bbox": [-2, 5, 4, 6]},
        ],
        "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "debris"}],
    }

    for annotation in content["annotations"]:
        annotation.update(area=annotation["bbox"][2] * annotation["bbox"][3], iscrowd=0)

    def load(text=None):
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content) if text is None else text)
        return load_coco(path, tmp_path / "images", max_box_faults=1)

    return content, load


def without_areas(records):
    """Records as detectron2 reads them, without the areas that a file states."""
    for record in records:
        for entry in record["annotations"]:
            entry.pop("area", None)
    return records


@pytest.mark.parametrize(
    "json_file, images",
    [
        ("nuclei/val.json", "nuclei/images"),
        ("coco/annotations/instances_val2017.json", "coco/val2017"),
    ],
)
def test_records_are_those_of_detectron2(real_data, json_file, images):
    dataset = load_coco(real_data / json_file, real_data / images)
    expected = load_coco_json(str(real_data / json_file), str(real_data / images), json_file)
    assert without_areas(dataset.records) == expected and not dataset.dropped


def test_categories_are_made_contiguous_in_the_order_of_their_ids(tiny):
    dataset = tiny[1]()
    assert dataset.classes == ["debris", "cell"] and dataset.category_ids == [3, 7]
    assert [o["category_id"] for r in dataset.records for o in r["annotations"]] == [1, 0, 0]


def test_uncompressed_rle_and_keypoints_are_read_as_detectron2_does(tiny, tmp_path):
    content, load = tiny
    content["annotations"][0]["segmentation"] = {"size": [20, 30], "counts": [0, 5, 595]}
    content["annotations"][1]["keypoints"] = [5, 6, 2, 7, 8, 1]
    dataset = load()
    path, images = str(tmp_path / "annotations.json"), str(tmp_path / "images")
    assert without_areas(dataset.records) == load_coco_json(path, images, "tiny keypoints")


@pytest.mark.parametrize(
    "bbox, why",
    [
        ([], "empty"),
        ([3, 3, 0, 5], "no area"),
        ([3, 3, 4, -1], "no area"),
        ([30, 3, 4, 4], "outside"),
        ([3, -9, 4, 9], "outside"),
        ([3, 3, float("nan"), 4], "not finite"),
        ([3, 3, 10**400, 4], "not finite"),
    ],
)
def test_empty_boxes_are_left_out_counted_and_named(tiny, caplog, bbox, why):
    content, load = tiny
    content["annotations"][1]["bbox"] = bbox
    with caplog.at_level(logging.WARNING):
        dataset = load()
    assert [len(record["annotations"]) for record in dataset.records] == [1, 1]
    assert re.search(rf"left out 1 of 3 boxes: annotation 2 of image 2 \(.*{why}", caplog.text)


def test_polygons_of_less_than_three_points_are_left_out(tiny):
    content, load = tiny
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    content["annotations"][1]["segmentation"] = [[1, 2, 3, 4], [5, 5, 9, 5, 9, 9]]
    dataset = load()
    assert len(dataset.dropped) == 1
    assert dataset.records[1]["annotations"][0]["segmentation"] == [[5, 5, 9, 5, 9, 9]]


@pytest.mark.parametrize(
    "polygon",
    [
        [1, 1, 1e9, 1, 1e9, 1e9],
        [1, 1, float("inf"), 1, 5, 9],
        [1, 1, 10**400, 1, 5, 9],
        [1, 1, "9", 1, 5, 9],
        # It goes back and forth across the image; only its length is wrong.
        [-5, -5, 35, 25] * 60_000,
    ],
    ids=["far", "infinite", "not a float", "text", "endless"],
)
def test_polygons_that_would_end_the_process_are_left_out(tiny, polygon):
    content, load = tiny
    content["annotations"][0]["segmentation"] = [polygon]
    dataset = load()
    assert dataset.records[0]["annotations"] == []
    assert "annotation 1 of image 1 (polygon not finite" in dataset.dropped[0]


def test_polygons_that_leave_the_image_a_little_are_taken(tiny):
    content, load = tiny
    # The second has many points, but is not longer.
    for polygon in ([-9, -4, 35, 0.5, 20, 33], [1.5, 2.5] * 60_000):
        content["annotations"][0]["segmentation"] = [polygon]
        assert load().records[0]["annotations"][0]["segmentation"] == [polygon]


def _repeat(section):
    return lambda content: content[section].append(dict(content[section][0]))


def _put(section, key, value, index=0):
    return lambda content: content[section][index].update({key: value})


def _rle(counts):
    return _put("annotations", "segmentation", {"size": [20, 30], "counts": counts})


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda c: c.pop("images"), "is not COCO: it has no list images"),
        (lambda c: c.update(annotations={}), "no list annotations"),
        (lambda c: c["images"].append(3), "images holds something not an object"),
        (lambda c: c.update(categories=[]), "has no categories"),
        (_repeat("images"), "same image id twice: 1"),
        (_repeat("categories"), "same category id twice: 7"),
        (_put("annotations", "image_id", 9), "annotation 1 has the unknown image_id 9"),
        (_put("annotations", "category_id", 9), "annotation 1 has the unknown category_id 9"),
        (_put("annotations", "bbox", [1, 2, 3]), "annotation 1 has no bbox of four numbers"),
        (_put("annotations", "bbox", None), "annotation 1 has no bbox of four numbers"),
        (
            _put("annotations", "segmentation", {"size": [9, 9]}),
            "annotation 1 has a mask that is not",
        ),
        (_rle("05"), r"annotation 1 has a mask that is not an RLE of \[20, 30\]"),
        (_rle(""), "annotation 1 has a mask that is not"),
        (_rle("\x7f"), "annotation 1 has a mask that is not"),
        (_rle("P" * 40), "annotation 1 has a mask that is not"),
        (_rle([5, -5, 600]), "annotation 1 has a mask that is not"),
        (_rle([5, 5]), "annotation 1 has a mask that is not"),
        (_rle(7), "annotation 1 has a mask that is not"),
        (_put("annotations", "segmentation", 5), "annotation 1 has a segmentation that is neither"),
        (_put("annotations", "image_id", [1]), r"annotation 1 has the unknown image_id \[1\]"),
        (_put("annotations", "keypoints", "abc"), "annotation 1 has keypoints that are not"),
        (_put("annotations", "keypoints", [5, 5]), "annotation 1 has keypoints that are not"),
        (_put("annotations", "iscrowd", [1]), "annotation 1 has an iscrowd that is neither"),
        (_put("images", "file_name", "a\0.png"), r"names 'a\\x00.png', which is no file name"),
        (_put("images", "file_name", "a\ud800.png"), "which is no file name"),
        (_put("images", "file_name", "a" * 300), "1 images \\(of 2\\) that do not exist"),
        (_put("images", "width", 10**12), "image 1 states a size that no image has"),
        (_put("images", "height", -5), "image 1 states a size that no image has"),
        (_put("categories", "name", "a\nb"), r"the class name 'a\\nb', which is no line of text"),
        (_put("categories", "name", "a\ud800"), "which is no line of text"),
        (_put("images", "file_name", "gone.png"), "1 images \\(of 2\\) that do not exist: .*gone"),
        (_put("images", "file_name", "../x.png"), "'../x.png', which lies outside"),
        (_put("images", "file_name", "/etc/passwd"), "'/etc/passwd', which lies outside"),
        (_put("images", "width", "wide"), "image 1 has no width"),
    ],
)
def test_a_broken_file_is_refused_by_name(tiny, change, sentence):
    content, load = tiny
    change(content)
    with pytest.raises(NormdetError, match=f"annotations.json.*{sentence}"):
        load()


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01", "3", "9" * 5000])
def test_what_is_not_coco_at_all_is_refused(tiny, text):
    with pytest.raises(NormdetError, match=r"annotations\.json is not (JSON|COCO)"):
        tiny[1](text)


def test_a_link_out_of_the_image_folder_is_refused(tiny, tmp_path):
    content, load = tiny
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    content["images"][0]["file_name"] = "link.png"
    with pytest.raises(NormdetError, match="lies outside the image folder"):
        load()


def test_an_image_folder_that_is_itself_a_link_is_followed(tiny, tmp_path):
    tiny[1]()
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    dataset = load_coco(tmp_path / "annotations.json", tmp_path / "linked")
    assert dataset.records[0]["file_name"] == str(tmp_path / "linked" / "a.png")


def test_a_run_length_without_end_is_none():
    assert runs("o" * 2_000_000) is None


def test_compressed_masks_of_any_shape_are_accepted(tiny):
    content, load = tiny
    rng = np.random.default_rng(0)
    for density in (0, 0.01, 0.5, 1):
        mask = np.asfortranarray(rng.random((20, 30)) < density, dtype=np.uint8)
        rle = mask_util.encode(mask)
        _rle(rle["counts"].decode())(content)
        segmentation = load().records[0]["annotations"][0]["segmentation"]
        assert np.array_equal(mask_util.decode(segmentation), mask)
