"""What holds for many formats: splits by names, broken shapes, refusals."""

import json

import pytest

from normdet.cli import main
from tests.medical.prepare.drawn import BOX, HEIGHT, NAMES, WIDTH, image, write
from tests.medical.prepare.services import box_lines, datumaro, labelbox, lines


def prepare(tmp_path, *flags):
    return main(["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out"), *flags])


def content_of(tmp_path, part="train"):
    return json.loads((tmp_path / "out" / f"{part}.json").read_text())


def test_subsets_are_splits_by_the_names_of_their_files(tmp_path):
    datumaro(tmp_path / "lab")
    path = tmp_path / "lab" / "annotations" / "default.json"
    content = json.loads(path.read_text())
    for name, items in (("train", content["items"][:2]), ("validation", content["items"][2:])):
        write(path.with_name(f"{name}.json"), content | {"items": items})
    path.unlink()
    assert prepare(tmp_path) == 0
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert made["images"] == {"train": 2, "val": 1}


def test_one_file_named_train_is_a_project(tmp_path):
    datumaro(tmp_path / "lab")
    folder = tmp_path / "lab" / "annotations"
    (folder / "default.json").rename(folder / "test.json")
    assert prepare(tmp_path, "--val", "0") == 0
    assert len(content_of(tmp_path)["images"]) == 3


def test_an_image_in_which_reading_stopped_is_left_out(tmp_path, capsys):
    labelbox(tmp_path / "lab")
    path = tmp_path / "lab" / "export.ndjson"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    objects = rows[1]["projects"]["p"]["labels"][0]["annotations"]["objects"]
    objects.append({"name": "cell", "polygon": [{"x": 3, "y": None}]})
    write(path, lines(rows))
    assert prepare(tmp_path, "--val", "0") == 0
    assert [one["file_name"] for one in content_of(tmp_path)["images"]] == ["a.png"]
    said = capsys.readouterr()
    assert "export.ndjson cannot be read as Labelbox" in said.err and "faults   1" in said.out
    assert "left out 2 images" in " ".join(said.out.split())


def test_masks_at_a_web_address_are_a_fault(tmp_path, capsys):
    labelbox(tmp_path / "lab")
    path = tmp_path / "lab" / "export.ndjson"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    objects = rows[1]["projects"]["p"]["labels"][0]["annotations"]["objects"]
    objects.append({"name": "cell", "mask": {"url": "https://x.y/z"}})
    write(path, lines(rows))
    assert prepare(tmp_path, "--val", "0") == 0
    assert "left out 1 masks, which Labelbox holds at a web address" in capsys.readouterr().err


def test_coco_s_own_folder(tmp_path, capsys):
    """Captions and keypoints beside instances are of the same images; they are a folder up."""
    names = {"train2017": "ab", "val2017": "c"}
    for split, letters in names.items():
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
        for number, name in enumerate(letters):
            image(tmp_path / "lab" / "coco" / "images" / split / f"{name}.jpg")
            content["images"].append({"id": number, "file_name": f"{name}.jpg",
                                      "height": HEIGHT, "width": WIDTH})  # fmt: skip
            content["annotations"].append({"id": number, "image_id": number, "category_id": 1,
                                           "bbox": BOX, "iscrowd": 0})  # fmt: skip
        folder = tmp_path / "lab" / "coco" / "annotations"
        for kind in ("instances", "person_keypoints", "stuff"):
            write(folder / f"{kind}_{split}.json", content)
        del content["categories"]
        write(folder / f"captions_{split}.json", content)
    assert prepare(tmp_path) == 0
    said = capsys.readouterr()
    made = json.loads((tmp_path / "out" / "fingerprint.json").read_text())
    assert made["images"] == {"train": 2, "val": 1} and "faults   0" in said.out, said.err


def test_a_list_of_boxes_may_hold_images_without_one(tmp_path):
    box_lines(tmp_path / "lab")
    image(tmp_path / "lab" / "empty.png")
    path = tmp_path / "lab" / "_annotations.txt"
    path.write_text(f"{path.read_text()}\nempty.png\n")
    assert prepare(tmp_path, "--val", "0") == 0
    content = content_of(tmp_path)
    assert len(content["images"]) == 4 and len(content["annotations"]) == 3


REFUSED = {
    "train/cells.tfrecord": ("\0\1", "TensorFlow's TFRecord"),
    "train/_classes.csv": ("filename, cell, dirt\na.png, 1, 0\nb.png, 0, 1\n",
                           "a table of the classes of whole images"),
    "panoptic.json": ({"images": [], "annotations": [{"segments_info": []}]},
                      "COCO panoptic JSON"),
    "encord.json": ([{"label_hash": "x", "data_units": {}}], "Encord's JSON"),
    "kili.json": ([{"labels": [{"jsonResponse": {}}]}], "Kili's JSON"),
    "segments.json": ({"segmentation_bitmap_url": "x"}, "Segments.ai's JSON"),
    "custom.json": ([{"regions": [{"regionId": 1, "tagName": "x"}]}], "Azure Custom Vision's"),
    "vertex.jsonl": ({"imageGcsUri": "gs://x/a.png", "boundingBoxAnnotations": []}, "Vertex AI"),
    "vertex.csv": ("TRAIN,gs://x/a.png,cell,0.1,0.1,,,0.2,0.2,,\n", "Vertex AI's table"),
    "a_gtFine_polygons.json": ({"imgHeight": 60, "imgWidth": 80, "objects": []}, "Cityscapes"),
    "_annotations.train.jsonl": ({"image": "a.png", "prefix": "detect", "suffix": "<loc0001>"},
                                 "PaliGemma's JSON lines"),
    "dataloop.json": ({"filename": "/a.png", "annotations": [{"coordinates": []}]}, "Dataloop's"),
    "label_2/a.txt": ("Car 0.00 0 -1.58 587.0 173.3 614.1 200.1 1.65 1.67 3.64 -0.65 1.71 46.7 "
                      "-1.59\n", "KITTI's text files"),
    "gt/gt.txt": ("1,1,10,12,20,24,1,1,1\n", "MOT's text files"),
    "a.roi": ("Iout", "ImageJ's regions"),
    "labels/a.mat": ("MATLAB 5.0", "MATLAB's files"),
    "train.parquet": ("PAR1", "a data base of images"),
    "export.zip": ("PK", "an archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("with_images", [True, False])
def test_known_formats_that_are_not_read_are_refused_by_name(tmp_path, capsys, name, with_images):
    content, told = REFUSED[name]
    write(tmp_path / "lab" / name, content)
    if with_images:
        for letter in NAMES:
            image(tmp_path / "lab" / f"{letter}.png")
    assert prepare(tmp_path) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert told in said and "which is not read: " in said and not (tmp_path / "out").exists()
