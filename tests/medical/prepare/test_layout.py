"""Images are paired with their labels by name, and never by chance."""

import pytest

from normdet.medical.prepare.layout import is_label, match_key, pair, patient_of, split_of


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
        ("images/a.jpg", "labels/a.jpg.png"),
        ("images/a.png", "annotations/instance_masks/a.png"),
        ("01/t007.tif", "01_GT/SEG/man_seg007.tif"),
        ("01/t007.tif", "01_ST/SEG/man_seg007.tif"),
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


def test_folders_of_other_names_are_paired_unless_they_may_be_of_others():
    found, told = pairs(["raw/p1/1.png", "raw/p2/1.png"], ["masks/p1/1.png", "masks/p2/1.png"])
    assert found == {"raw/p1/1.png": "1.png", "raw/p2/1.png": "1.png"} and not told
    found, told = pairs(["Original/1.png", "Original/2.png"], ["Mask/1_mask.png"])
    assert found == {"Original/1.png": "1_mask.png"}
    assert told == ["in/Original/2.png has no label"]
    found, told = pairs(["p1/images/1.png"], ["p2/masks/1.png"])
    assert not found and len(told) == 2
    found, told = pairs(["raw/p1/1.png"], ["masks/p2/1.png"])
    assert not found and len(told) == 2


def test_names_of_splits_and_patients():
    from pathlib import Path

    assert [split_of(name) for name in ("instances_val2017", "train", "trainval", "a_test")] == [
        "val", "train", None, "test"
    ]  # fmt: skip
    assert patient_of(Path("sub-07/anat/x.nii"), None) == "sub-07"
    assert patient_of(Path("P12_s3.png"), r"^(P\d+)_") == "P12"
    assert patient_of(Path("x.png"), r"^(P\d+)_") is None
