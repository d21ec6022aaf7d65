"""Pascal VOC folders with any class names."""

import numpy as np
import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances
from PIL import Image

from normdet.data import load_voc
from normdet.errors import NormdetError

OBJECT = """<object><name>{}</name><difficult>1</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>
<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.fixture
def folder(tmp_path):
    """Two images, `a` in the set `train` and `b` in the set `val`."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    objects = {"a": OBJECT.format("RBC", 1, 1, 9, 9), "b": OBJECT.format("Platelets", 2, 3, 9, 9)}
    for stem, part in (("a", "train"), ("b", "val")):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "JPEGImages" / f"{stem}.png")
        text = f"<annotation>{objects[stem]}</annotation>"
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(text)
        (tmp_path / "ImageSets/Main" / f"{part}.txt").write_text(stem + "\n\n")
    return tmp_path


def test_blood_cells_are_those_of_detectron2_less_the_degenerate_boxes(real_data):
    total = dropped = 0
    for part in ("train", "val", "test"):
        dataset = load_voc(real_data / "bccd", part)
        assert dataset.classes == ["Platelets", "RBC", "WBC"]
        expected = load_voc_instances(str(real_data / "bccd"), part, dataset.classes)
        assert [r["file_name"] for r in dataset.records] == [r["file_name"] for r in expected]
        for ours, theirs in zip(dataset.records, expected, strict=True):
            assert (ours["height"], ours["width"]) == (theirs["height"], theirs["width"])
            kept = [o for o in theirs["annotations"] if o["bbox"][2] - o["bbox"][0] > 1]
            assert ours["annotations"] == kept
        total += len(expected)
        dropped += len(dataset.dropped)
    assert total == 364 and dropped == 2


def test_every_set_of_a_folder_has_the_classes_of_the_folder(folder):
    train, val = load_voc(folder, "train"), load_voc(folder, "val")
    assert train.classes == val.classes == ["Platelets", "RBC"]
    assert train.records[0]["annotations"][0]["category_id"] == 1
    assert train.records[0]["annotations"][0]["bbox"] == [0, 0, 9, 9]


def test_degenerate_boxes_are_left_out_and_named(folder, caplog):
    broken = OBJECT.format("RBC", 5, 5, 5, 5) + OBJECT.format("RBC", 31, 2, 40, 9)
    good = OBJECT.format("RBC", 1, 1, 2, 2)
    (folder / "Annotations" / "a.xml").write_text(f"<annotation>{broken}{good}</annotation>")
    dataset = load_voc(folder, "train", max_box_faults=0.5)
    assert len(dataset.records[0]["annotations"]) == 1
    assert dataset.dropped == ["RBC in a.xml (no area)", "RBC in a.xml (outside the image)"]
    assert "left out 2 of 3 boxes" in caplog.text


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("Annotations/a.xml", "<annotation>", "a.xml is not XML"),
        ("Annotations/a.xml", '<!DOCTYPE x [<!ENTITY y "z">]><x/>', "declares an XML entity"),
        ("Annotations/a.xml", "<a><object><name>RBC</name></object></a>", "bndbox of four numbers"),
        ("ImageSets/Main/train.txt", "../../secret", "lies outside the image folder"),
        ("ImageSets/Main/train.txt", "gone", "gone.xml cannot be read: No such file"),
        ("ImageSets/Main/train.txt", "größe", "train.txt is not text in UTF-8"),
        ("Annotations/a.xml", '<?xml version="1.0" encoding="x-y"?><a/>', "a.xml is not XML"),
    ],
)
def test_a_broken_folder_is_refused(folder, name, text, sentence):
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(NormdetError, match=sentence):
        load_voc(folder, "train")


def test_an_entity_is_found_in_utf_16_too(folder):
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE x [<!ENTITY y "z">]><x/>'
    (folder / "Annotations" / "a.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(NormdetError, match="declares an XML entity"):
        load_voc(folder, "train")


def test_an_image_named_twice_is_read_once(folder):
    (folder / "ImageSets/Main/train.txt").write_text("a 1\nb -1\na 1\n")
    assert len(load_voc(folder, "train").records) == 2
    assert len(load_voc(folder, "train", without={"b"}).records) == 1


def test_a_missing_set_and_a_missing_image_are_named(folder):
    with pytest.raises(NormdetError, match="not a Pascal VOC folder with a set 'test'"):
        load_voc(folder, "test")
    (folder / "JPEGImages" / "a.png").unlink()
    with pytest.raises(NormdetError, match="names a, but there is no image"):
        load_voc(folder, "train")
