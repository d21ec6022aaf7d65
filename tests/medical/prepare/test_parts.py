"""The small parts: encoding, splits, statistics, names, the config that comes out."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from PIL import Image

from normdet.cli import main
from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.medical.prepare.contact_sheet import _picture
from normdet.medical.prepare.fragment import anchor_sizes
from normdet.medical.prepare.layout import is_label, match_key, pair, patient_of, split_of
from normdet.medical.prepare.masks import Labels, as_labels, components, encode_labels, objects_of
from normdet.medical.prepare.split import assign, divided
from normdet.medical.prepare.statistics import channel_sums, mean_and_std
from normdet.medical.prepare.write import file_name_of
from tests.medical.prepare.make import blobs, write_bowl


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


def test_what_labels_mean():
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
        # No file has two, but two are met: nothing says that they are one class.
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


def test_groups_are_not_divided():
    rng = np.random.default_rng(0)
    groups = [f"p{number}" for number in rng.integers(0, 40, 500)]
    splits = assign(groups, [None] * 500, 0.2, 0.1, seed=3)
    assert not divided(groups, splits)
    assert 0.14 < splits.count("val") / 500 < 0.26 and 0.04 < splits.count("test") / 500 < 0.16
    assert splits == assign(groups, [None] * 500, 0.2, 0.1, seed=3)
    assert splits != assign(groups, [None] * 500, 0.2, 0.1, seed=4)
    # What a patient is called does not matter: keys are drawn anew by each run.
    assert splits == assign([f"x{group}" for group in groups], [None] * 500, 0.2, 0.1, seed=3)


def test_small_and_given_splits():
    assert assign(["a"], [None], 0.5, 0, 0) == ["train"]
    assert sorted(assign(["a", "b"], [None] * 2, 0.01, 0, 0)) == ["train", "val"]
    assert assign(["a", "b"], [None] * 2, 0, 0, 0) == ["train", "train"]
    assert assign(["a", "a", "b"], ["val", "train", None], 0.2, 0, 0) == ["val", "train", "train"]
    assert divided(["a", "a", "b"], ["val", "train", "train"]) == ["a"]
    # One split alone is none: some must be left to validate on.
    assert "val" in assign(["a", "b"], ["train"] * 2, 0.2, 0, 0)
    # What the source tests on is not trained on, if there is anything else.
    assert assign(["a", "b"], ["test", None], 0.2, 0, 0) == ["test", "train"]


@pytest.mark.parametrize("given, stated", [(["val", "test"], ()), (["val"] * 2, ("train", "val"))])
def test_a_source_of_which_nothing_is_left_to_train_on(given, stated):
    with pytest.raises(NormdetError, match="no image is left to train on: .* in (test and )?val$"):
        assign(["a", "b"], given, 0.2, 0, 0, stated)


def test_a_name_that_is_too_long_keeps_its_end():
    pixels = np.zeros((2, 2), np.uint8)
    long = ["ä" * 150 + f"{number}_0001" for number in range(2)]
    names = [file_name_of(name, pixels) for name in long]
    assert len({*names}) == 2 and max(len(name.encode()) for name in names) < 255
    assert all(name.endswith(f"ä{number}_0001.png") for number, name in enumerate(names))
    assert file_name_of("a", pixels.astype(np.float32)) == "a.tif"


@pytest.mark.slow
def test_the_sheet_brightens_a_part_of_a_large_image(tmp_path):
    Image.fromarray(np.zeros((1500, 9000), np.uint16)).save(tmp_path / "a.png")
    assert _picture(tmp_path / "a.png").size == (9000, 1500)
    Image.fromarray(np.zeros((3000, 9000), np.uint16)).save(tmp_path / "a.png")
    assert _picture(tmp_path / "a.png").size == (4500, 1500)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_means_are_bgr_and_exact(dtype):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(dtype)
    mean, std = mean_and_std(channel_sums(image) + channel_sums(image[::-1]))
    assert mean == pytest.approx(image.reshape(-1, 3).mean(0)[::-1], abs=1e-3)
    assert std == pytest.approx(image.reshape(-1, 3).std(0)[::-1], abs=1e-3)
    assert mean_and_std(channel_sums(np.full((3, 3), 7, dtype))) == ([7.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    "image, label",
    [
        ("images/a.png", "labels/a.tif"),
        ("images/train/a.png", "masks/train/a.tif"),
        ("train/images/a.png", "train/labels/a_mask.png"),
        ("a.png", "a_seg.png"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("sub-1/scan.nii", "sub-1/scan_label.nii.gz"),
        ("images/a.png", "masks/a_gt.png"),
        ("images/a.png", "masks/label_a.png"),
        ("image_a.png", "mask_a.png"),
        ("1/image.png", "1/mask.png"),
        ("images/mask_a.png", "masks/mask_a.png"),
    ],
)
def test_an_image_and_its_label(image, label):
    from pathlib import Path

    assert match_key(Path(image)) == match_key(Path(label))
    assert is_label(Path(label)) and not is_label(Path(image))


def pairs(images, labels):
    """By their names, and what is reported."""
    from pathlib import Path

    told = []
    root = Path("in")
    found = pair(
        [root / name for name in images], root, [root / n for n in labels], root, told.append
    )
    names = {image.relative_to(root).as_posix(): label.name for image, label in found.items()}
    return names, told


def test_nothing_is_paired_by_chance():
    found, told = pairs(["images/a.png", "images/b.png"], ["masks/b_mask.png", "masks/c.png"])
    assert found == {"images/b.png": "b_mask.png"}
    assert told == ["in/images/a.png has no label", "in/masks/c.png is the label of no image"]
    # Names that differ only by what tells labels from images are told apart if each is there.
    found, told = pairs(["images/1.png", "images/img_1.png"], ["masks/1.png", "masks/img_1.png"])
    assert found == {"images/1.png": "1.png", "images/img_1.png": "img_1.png"} and not told
    found, told = pairs(["images/1.png", "images/img_1.png"], ["masks/mask_1.png"])
    assert not found and len(told) == 3
    found, told = pairs(["images/1.png", "images/1.jpg"], ["masks/1.png"])
    assert not found and "images/1.png, in/images/1.jpg have one label" in told[0]


def test_names_of_splits_and_patients():
    from pathlib import Path

    assert [split_of(name) for name in ("instances_val2017", "train", "trainval", "a_test")] == [
        "val", "train", None, "test"
    ]  # fmt: skip
    assert patient_of(Path("sub-07/anat/x.nii"), None) == "sub-07"
    assert patient_of(Path("P12_s3.png"), r"^(P\d+)_") == "P12"
    assert patient_of(Path("x.png"), r"^(P\d+)_") is None


def test_anchors_start_at_the_smallest_common_object():
    assert anchor_sizes({"5%": 9}, 2.0) == [16, 32, 64, 128, 256]
    assert anchor_sizes({"5%": 300}, 1.0)[0] == 32 and anchor_sizes({"5%": 1}, 1.0)[0] == 8


def test_the_config_loads_and_describes_the_data(tmp_path):
    write_bowl(tmp_path / "in", [blobs(seed, size=96 + 32 * seed) for seed in range(4)])
    out = tmp_path / "out mit Leerzeichen"
    assert main(["prepare", str(tmp_path / "in"), "--out", str(out), "--val", "0.25"]) == 0
    cfg = load_config(out / "train.yaml")
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert cfg.DATASETS.ROOT == str(out) and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1
    assert cfg.DATASETS.TRAIN == ("coco:train.json:images",) or cfg.DATASETS.TRAIN == [
        "coco:train.json:images"
    ]
    assert list(cfg.MODEL.PIXEL_MEAN) == fingerprint["pixel_mean"]
    assert cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "bitmask"
    assert yaml.safe_load((out / "dataset.yaml").read_text())["TEST"]["DETECTIONS_PER_IMAGE"] == 100
    content = json.loads((out / "train.json").read_text())
    values = [np.asarray(Image.open(out / "images" / i["file_name"])) for i in content["images"]]
    whole = np.concatenate([value.reshape(-1, 3) for value in values])
    assert fingerprint["pixel_mean"] == pytest.approx(whole.mean(0)[::-1], abs=1e-3)
    sheet = Image.open(out / "contact_sheet.png")
    assert sheet.width > 900 and len(np.unique(np.asarray(sheet))) > 20
