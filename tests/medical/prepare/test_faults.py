"""Bad input is named, then skipped and counted or refused, as the user chose."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from normdet.cli import main
from normdet.medical.prepare import command
from tests.medical.prepare.make import blobs, masks_of, write_bowl, write_series


@pytest.fixture
def folder(tmp_path):
    """Three good images with labels."""
    source = tmp_path / "in"
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
    for index in range(3):
        add(source, f"good{index}", blobs(index))
    return source


def add(source, name, case):
    """An image and its label."""
    Image.fromarray(case.pixels).save(source / "images" / f"{name}.png")
    Image.fromarray(case.labels).save(source / "labels" / f"{name}.png")


def truncate(path):
    """Cut a file in its middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def no_label(source):
    add(source, "bad", blobs(9))
    (source / "labels" / "bad.png").unlink()


def larger_label(source):
    add(source, "bad", blobs(9))
    Image.fromarray(blobs(9, size=128).labels).save(source / "labels" / "bad.png")


def cut_image(source):
    add(source, "bad", blobs(9))
    truncate(source / "images" / "bad.png")


def cut_label(source):
    add(source, "bad", blobs(9))
    truncate(source / "labels" / "bad.png")


def fractional_label(source):
    add(source, "bad", blobs(9))
    (source / "labels" / "bad.png").unlink()
    tifffile.imwrite(source / "labels" / "bad.tif", np.full((96, 96), 0.5, np.float32))


def label_of_more_pages(source):
    add(source, "bad", blobs(9))
    (source / "labels" / "bad.png").unlink()
    tifffile.imwrite(source / "labels" / "bad.tif", np.stack([blobs(9).labels] * 2))


def label_of_fewer_pages(source):
    label_of_more_pages(source)
    (source / "images" / "bad.png").unlink()
    stack = np.stack([blobs(9).pixels] * 3)
    tifffile.imwrite(source / "images" / "bad.tif", stack, photometric="minisblack")


def huge_image(source):
    add(source, "bad", blobs(9))
    path = source / "images" / "bad.png"
    content = bytearray(path.read_bytes())
    # The header states a size that no memory holds, with a valid checksum.
    content[16:24] = struct.pack(">II", 40_000, 40_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def huge_tiff(source):
    add(source, "bad", blobs(9))
    (source / "images" / "bad.png").unlink()
    path = source / "images" / "bad.tif"
    tifffile.imwrite(path, blobs(9).pixels)
    for name in ("ImageWidth", "ImageLength"):
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[name].overwrite(40_000)


def link_outside(source):
    target = source.parent / "outside.png"
    Image.fromarray(blobs(9).pixels).save(target)
    (source / "images" / "bad.png").symlink_to(target)


def label_of_nothing(source):
    add(source, "bad", blobs(9))
    (source / "images" / "bad.png").unlink()


def two_labels(source):
    add(source, "bad", blobs(9))
    Image.fromarray(blobs(8).labels).save(source / "labels" / "bad_mask.tif")


FAULTS = {
    label_of_nothing: "labels/bad.png is the label of no image",
    two_labels: r"bad.png has 2 labels, and is left out: .*labels/bad.png, .*labels/bad_mask.tif",
    no_label: "images/bad.png has no label",
    larger_label: "labels/bad.png has 128x128 pixels, its image .*bad.png 96x96",
    cut_image: "images/bad.png cannot be read as an image",
    cut_label: "labels/bad.png cannot be read as an image",
    fractional_label: "bad.tif is no label image: it holds values that are not whole",
    label_of_more_pages: "labels/bad.tif has 2 pages, its image .*images/bad.png 1",
    label_of_fewer_pages: "labels/bad.tif has 2 pages, its image .*images/bad.tif 3",
    huge_image: "bad.png unpacks to .* GB from .* MB: it is a compression bomb",
    huge_tiff: "bad.tif unpacks to .* GB from .* MB: it is a compression bomb",
    link_outside: "images/bad.png is a link that leads out of",
}


@pytest.mark.slow
@pytest.mark.parametrize("harm", FAULTS, ids=lambda harm: harm.__name__)
def test_a_fault_is_skipped_and_counted_or_refused(folder, tmp_path, capsys, harm):
    harm(folder)
    command = ["prepare", str(folder), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert len(masks_of(tmp_path / "out")) == 3
    assert re.search(f"fault: .*{FAULTS[harm]}", printed.err)
    # It is counted once, though a link is found among images and among labels.
    assert "faults   1\n" in printed.out
    assert json.loads((tmp_path / "out/fingerprint.json").read_text())["faults"] == 1
    command = ["prepare", str(folder), "--out", str(tmp_path / "none"), "--on-error", "stop"]
    assert main(command) == 2
    assert re.search(FAULTS[harm], capsys.readouterr().err)
    assert not (tmp_path / "none").exists()


def test_a_label_volume_on_another_grid_is_refused(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    case, affine = blobs(0), np.diag([0.7, 0.8, 2.5, 1])
    for name in ("good", "mirrored", "cut"):
        for folder, values in (("images", case.pixels), ("labels", case.labels)):
            (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
            volume = np.stack([values] * 3, axis=-1).astype(np.int16)
            if folder == "labels" and name == "cut":
                volume = volume[..., :2]
            sign = -1 if folder == "labels" and name == "mirrored" else 1
            image = nibabel.Nifti1Image(volume, affine * [sign, 1, 1, 1])
            image.to_filename(tmp_path / "in" / folder / f"{name}.nii")
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "cut.nii has 96x96x2 voxels, its image" in printed.err
    assert re.search("labels/mirrored.nii lies elsewhere .*images/mirrored.nii", printed.err)
    assert "faults   2" in printed.out and len(masks_of(tmp_path / "out")) == 3


def test_a_file_that_the_system_does_not_let_be_read(folder, tmp_path, capsys, monkeypatch):
    add(folder, "private", blobs(9))
    (folder / "images" / "secret").touch()
    own = open

    def refusing(path, *args, **kwargs):
        if re.search("private.png|secret", str(path)) and str(path).startswith(str(folder)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return own(path, *args, **kwargs)

    # Tests may run as root, whom the system lets read all.
    monkeypatch.setattr("builtins.open", refusing)
    assert main(["prepare", str(folder), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    for name in ("private.png", "secret"):
        assert f"fault: {folder / 'images' / name} cannot be read: Permission denied" in printed.err
    assert "faults   2" in printed.out and len(masks_of(tmp_path / "out")) == 3


def test_the_cap_can_be_raised(folder, tmp_path):
    add(folder, "wide", blobs(1, size=128))
    command = ["prepare", str(folder), "--max-pixels", "10000"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert len(masks_of(tmp_path / "a")) == 3
    command[-1] = "20000"
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    assert len(masks_of(tmp_path / "b")) == 4


def test_empty_labels_are_kept_as_images_without_objects_unless_told(folder, tmp_path, capsys):
    case = blobs(5)
    add(folder, "empty", type(case)(case.pixels, case.labels * 0))
    assert main(["prepare", str(folder), "--out", str(tmp_path / "a")]) == 0
    assert "empty    1 images hold no object" in capsys.readouterr().out
    assert len(masks_of(tmp_path / "a")) == 4
    assert main(["prepare", str(folder), "--out", str(tmp_path / "b"), "--skip-empty"]) == 0
    assert len(masks_of(tmp_path / "b")) == 3


def test_labels_without_any_object_are_refused(folder, tmp_path, capsys):
    for path in (folder / "labels").iterdir():
        Image.fromarray(np.zeros((96, 96), np.uint8)).save(path)
    assert main(["prepare", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "no image has a single object" in capsys.readouterr().err


def test_overlapping_masks_are_both_kept(tmp_path):
    case = blobs(0)
    write_bowl(tmp_path / "in", [case, blobs(1)])
    square = np.zeros(case.labels.shape, np.uint8)
    square[10:60, 10:60] = 255
    Image.fromarray(square).save(tmp_path / "in/case0/masks/over.png")
    Image.fromarray(square * 0).save(tmp_path / "in/case0/masks/nothing.png")
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    masks = masks_of(tmp_path / "out")
    over = np.packbits(square > 0).tobytes()
    assert case.masks | {over} in masks.values()


def test_images_of_different_sizes(folder, tmp_path):
    add(folder, "small", blobs(4, size=64, count=4))
    assert main(["prepare", str(folder), "--out", str(tmp_path / "out")]) == 0
    sizes = json.loads((tmp_path / "out/fingerprint.json").read_text())["image_size"]
    assert sizes["width"]["min"] == 64 and sizes["width"]["max"] == 96


def test_a_series_with_a_gap_and_a_broken_slice(tmp_path, capsys):
    cases = [blobs(seed) for seed in range(7)]
    source = tmp_path / "in"
    write_series(source, cases)
    for index, case in enumerate(cases):
        (path,) = source.glob(f"IM?{index}.dcm")
        (source / "labels").mkdir(exist_ok=True)
        Image.fromarray(case.labels).save(source / "labels" / f"{path.stem}.png")
    next(source.glob("IM?3.dcm")).unlink()
    broken = next(source.glob("IM?5.dcm"))
    broken.write_bytes(broken.read_bytes()[:-9999])
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "no slice at 7.5 mm along its normal" in printed.err
    # DICOM files are named by numbers, which the key resolves.
    number = re.search(r"file (\d+) has pixels that cannot be read", printed.err)[1]
    key = (tmp_path / "out-names.csv").read_text().splitlines()
    (row,) = [row for row in key if broken.name in row]
    assert number in row and broken.name not in printed.err
    assert "faults   2" in printed.out
    found = masks_of(tmp_path / "out")
    kept = [cases[index].masks for index in (0, 1, 2, 4, 6)]
    assert [found[name] for name in sorted(found)] == kept


@pytest.fixture
def coco(tmp_path):
    """A COCO folder with one good image, and a place outside."""
    source = tmp_path / "in"
    (source / "images").mkdir(parents=True)
    for path in (source / "images/a.png", tmp_path / "secret.png"):
        Image.fromarray(blobs(0).pixels.astype(np.uint8)).save(path)
    return source


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("../../secret.png", "lies outside the image folder"),
        ("{tmp}/secret.png", "lies outside the image folder"),
        ("link.png", "lies outside the image folder"),
        ("gone.png", "do not exist"),
    ],
)
def test_a_coco_file_that_names_files_outside_is_refused(coco, tmp_path, capsys, name, sentence):
    (coco / "images/link.png").symlink_to(tmp_path / "secret.png")
    images = [
        {"id": 1, "file_name": "a.png", "height": 96, "width": 96},
        {"id": 2, "file_name": name.format(tmp=tmp_path), "height": 96, "width": 96},
    ]
    boxes = [
        {"id": i, "image_id": image, "category_id": 5, "bbox": [1, 1, 9, 9], "iscrowd": 0}
        for i, image in enumerate((1, 2))
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 5, "name": "x"}]}
    (coco / "train.json").write_text(json.dumps(content))
    assert main(["prepare", str(coco), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert sentence in printed.err and "faults   1" in printed.out
    assert len(list((tmp_path / "out/images").iterdir())) == 1
    command = ["prepare", str(coco), "--out", str(tmp_path / "none"), "--on-error", "stop"]
    assert main(command) == 2
    assert sentence in capsys.readouterr().err


def write_coco(path, images, **extra):
    """Write a box for each image; missing images are made."""
    entries = []
    for number, image in enumerate(images, start=1):
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            Image.fromarray(blobs(len(image.parent.name)).pixels).save(image)
        entries.append({"id": number, "file_name": image.name, "height": 96, "width": 96})
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [9, 9, 9, 9], **extra}
        for n in range(1, len(images) + 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    path.write_text(json.dumps(content))


def written_images(out):
    """File names by split, after a check that each exists."""
    found = {}
    for path in (out / f"{name}.json" for name in ("train", "val", "test")):
        if path.is_file():
            names = [image["file_name"] for image in json.loads(path.read_text())["images"]]
            assert all((out / "images" / name).is_file() for name in names)
            found[path.stem] = sorted(names)
    return found


def test_images_of_one_name_in_several_coco_files(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("first", "second!"):
        write_coco(source / "annotations" / f"{name}.json", [source / name / "x.png"])
    # The images of another file once more, and its own one.
    write_coco(source / "annotations" / "third.json", [source / "first" / "x.png"])
    (source / "third").symlink_to(source / "first")
    assert main(["prepare", str(source), "--out", str(out), "--val", "0"]) == 0
    assert written_images(out) == {"train": ["x.png", "x_2.png"]}
    first, second = (np.asarray(Image.open(out / "images" / n)) for n in ("x.png", "x_2.png"))
    assert (first != second).any()
    printed = capsys.readouterr()
    assert "third.json: left out 1 images that" in printed.err and "faults   1" in printed.out


def test_no_image_is_written_over_another(tmp_path, capsys):
    """An image can be named `series0001`, as DICOM series are."""
    source = tmp_path / "in"
    for name in ("a", "b"):
        write_coco(source / f"{name}.json", [source / name / f"{name}.png"])
    whole = command.stacks

    def alike(request, report, notes):
        for stack in whole(request, report, notes):
            yield replace(stack, source=replace(stack.source, name="x"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "stacks", alike)
        assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "b.png would replace x.png, which another image is" in capsys.readouterr().err
    assert written_images(tmp_path / "out") == {"train": ["x.png"]}


def test_when_all_images_to_train_on_are_broken(tmp_path, capsys):
    source = tmp_path / "in"
    for name in ("train", "val"):
        write_coco(source / f"{name}.json", [source / name / f"{i}.png" for i in range(2)])
    for path in (source / "train").iterdir():
        truncate(path)
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "no image is left to train on: the source puts those that were read in val" in (
        capsys.readouterr().err
    )


def test_boxes_without_a_mask_are_counted(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    mask = {"segmentation": [[9, 9, 18, 9, 18, 18]]}
    write_coco(source / "train.json", [source / "train" / f"{i}.png" for i in range(3)], **mask)
    write_coco(source / "val.json", [source / "val" / "a.png"])
    assert main(["prepare", str(source), "--out", str(out)]) == 0
    assert "note     1 of 4 objects have no mask: boxes alone are trained" in (
        capsys.readouterr().out
    )
    assert "MASK_ON: False" in (out / "dataset.yaml").read_text()


@pytest.mark.parametrize(
    "sets, expected",
    [
        ({"trainval": "ab", "test": "c"}, {"train": "ab", "test": "c"}),
        ({"train": "a", "trainval": "ab", "test": "c"}, {"train": "a", "val": "b", "test": "c"}),
        ({"cell_train": "a", "cell_val": "b", "cell_trainval": "ab", "x_train": "ac"},
         {"train": "ac", "val": "b"}),
    ],
)  # fmt: skip
def test_sets_of_a_voc_folder(tmp_path, capsys, sets, expected):
    source = tmp_path / "in"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (source / name).mkdir(parents=True)
    box = "<bndbox><xmin>9</xmin><ymin>9</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    for letter in "abc":
        Image.fromarray(blobs(0).pixels).save(source / "JPEGImages" / f"{letter}.png")
        text = f"<annotation><object><name>\n x </name>{box}</object></annotation>"
        (source / "Annotations" / f"{letter}.xml").write_text(text)
    for name, letters in sets.items():
        lines = "".join(f"{letter} -1\n" for letter in letters)
        (source / "ImageSets/Main" / f"{name}.txt").write_text(lines)
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 0
    found = written_images(tmp_path / "out")
    assert {k: "".join(name[-5] for name in names) for k, names in found.items()} == expected
    printed = capsys.readouterr().out
    assert "faults   0" in printed and "classes  x" in printed


def test_an_old_result_stays_until_the_new_one_is_complete(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["prepare", str(folder), "--out", str(out)]
    assert main(command) == 0
    (out / "mine").touch()
    assert main(command) == 2
    assert "exists: name another folder" in capsys.readouterr().err
    no_label(folder)
    assert main([*command, "--overwrite", "--on-error", "stop"]) == 2
    assert (out / "mine").exists()
    assert main([*command, "--overwrite"]) == 0
    assert not (out / "mine").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.slow
def test_a_killed_run_leaves_no_folder_that_looks_whole(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_bowl(source, [blobs(seed, size=512, count=100) for seed in range(12)])
    command = [sys.executable, "-m", "normdet", "prepare", str(source), "--out", str(out)]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob(".out-*/data/images/*.png")) and time.monotonic() < deadline:
        assert run.poll() is None and not out.exists()
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert not out.exists()
    assert os.listdir(tmp_path) != ["in"], "killed too late to show anything"


@pytest.mark.parametrize(
    "option",
    [
        ["--window", "CT:40"],
        ["--val", "0.7", "--test", "0.5"],
        ["--val", "nan"],
        ["--patient", "("],
        ["--classes", "a,,b"],
        ["--classes", "a\nb"],
        ["--classes", "a,b", "--instances", "values"],
    ],
)
def test_bad_options_are_refused(folder, tmp_path, option, capsys):
    assert main(["prepare", str(folder), "--out", str(tmp_path / "out"), *option]) == 2
    assert "error" in capsys.readouterr().err


def test_the_result_does_not_go_into_its_source(folder, capsys):
    assert main(["prepare", str(folder), "--out", str(folder / "out")]) == 2
    assert "lies in the source" in capsys.readouterr().err


def test_an_empty_source_is_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("nothing")
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "is no source that is recognized" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "gone"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("package, kind", [("pydicom", "dicom"), ("nibabel", "nifti")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys, package, kind):
    source = tmp_path / "in"
    write_series(source, [blobs(0)])
    if kind == "nifti":
        nibabel = pytest.importorskip("nibabel")
        for path in source.iterdir():
            path.unlink()
        volume = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
        for name in ("a.nii", "a_seg.nii"):
            volume.to_filename(source / name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 2
    assert f"{package} is needed" in (error := capsys.readouterr().err)
    assert "pip install normdet[medical]" in error


def test_a_source_is_not_replaced_by_its_result(tmp_path, capsys):
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    (raw / "a.png").write_bytes(b"mine")
    assert main(["prepare", str(raw), "--out", str(tmp_path / "data"), "--overwrite"]) == 2
    assert "name a place beside it" in capsys.readouterr().err
    assert (raw / "a.png").read_bytes() == b"mine"
