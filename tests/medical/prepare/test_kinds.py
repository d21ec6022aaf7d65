"""Every kind of source gives the same instances."""

import gc
import json
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from normdet.cli import main
from normdet.files.faults import stop
from normdet.medical.prepare import dicom as prepare_dicom
from normdet.medical.prepare.masks import Labels
from normdet.medical.readers import read_slices
from tests.medical.prepare.make import blobs, masks_of, write_bowl, write_segmentation, write_series

nibabel = pytest.importorskip("nibabel")


def expect(out, cases):
    """The prepared folder holds exactly these images' instances, in order of names."""
    found = masks_of(out)
    assert [found[name] for name in sorted(found)] == [case.masks for case in cases]


@pytest.mark.parametrize(
    "suffix, dtype", [("png", np.uint8), ("png", np.uint16), ("tif", np.uint16), ("tif", np.uint32)]
)
def test_label_images(nuclei, tmp_path, suffix, dtype):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
    for index, case in enumerate(nuclei):
        tifffile.imwrite(source / "images" / f"größe {index}.tif", case.pixels)
        labels = case.labels.astype(dtype)
        if suffix == "tif":
            tifffile.imwrite(source / "labels" / f"größe {index}.tif", labels)
        else:
            Image.fromarray(labels).save(source / "labels" / f"größe {index}.png")
    assert main(["prepare", str(source), "--out", str(out), "--classes", "nucleus"]) == 0
    expect(out, nuclei)
    content = json.loads((out / "train.json").read_text(encoding="utf-8"))
    assert [c["name"] for c in content["categories"]] == ["nucleus"]
    assert content["images"][0]["file_name"].startswith("images__größe_")


def test_labels_beside_their_images_or_in_a_folder_of_their_own(nuclei, tmp_path):
    beside, apart, labels = tmp_path / "beside", tmp_path / "apart", tmp_path / "truth"
    for folder in (beside, apart, labels):
        folder.mkdir()
    for index, case in enumerate(nuclei):
        Image.fromarray(case.pixels).save(beside / f"{index}.png")
        Image.fromarray(case.pixels).save(apart / f"{index}.png")
        Image.fromarray(case.labels).save(beside / f"{index}_mask.png")
        Image.fromarray(case.labels).save(labels / f"{index}.png")
    assert main(["prepare", str(beside), "--out", str(tmp_path / "a")]) == 0
    expect(tmp_path / "a", nuclei)
    command = ["prepare", str(apart), "--labels", str(labels), "--out", str(tmp_path / "b")]
    assert main(command) == 0
    expect(tmp_path / "b", nuclei)


def test_labels_with_a_palette_are_read_by_number(tmp_path):
    case = blobs(0, count=4)
    classes = np.where(case.labels % 2, 1, 2 * (case.labels > 0)).astype(np.uint8)
    picture = Image.fromarray(classes).convert("P")
    picture.putpalette([0, 0, 0, 9, 9, 9, 255, 0, 0])
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    picture.save(source / "a_mask.png")
    Image.fromarray(case.pixels).save(source / "a.png")
    command = ["prepare", str(source), "--out", str(out), "--instances", "components"]
    assert main([*command, "--classes", "round,flat"]) == 0
    expect(out, [case])
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert fingerprint["classes"] == {"round": 2, "flat": 2}


def test_a_mask_for_each_instance(nuclei, tmp_path, capsys):
    write_bowl(tmp_path / "in", nuclei)
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    expect(tmp_path / "out", nuclei)
    assert "faults   0" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["", "_mask", "_seg"])
def test_images_and_masks_are_paired_though_one_lacks(tmp_path, capsys, suffix):
    cases = [blobs(seed) for seed in range(4)]
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    for index, case in enumerate(cases):
        Image.fromarray(case.pixels).save(source / "images" / f"{index}.png")
        if index != 2:
            Image.fromarray(case.labels).save(source / "masks" / f"{index}{suffix}.png")
    command = ["prepare", str(source), "--out", str(out)]
    assert main(command) == 0
    expect(out, [cases[0], cases[1], cases[3]])
    printed = capsys.readouterr()
    assert "images/2.png has no label" in printed.err and "faults   1" in printed.out
    # With the wrong --kind they are refused.
    command = ["prepare", str(source), "--out", str(tmp_path / "none"), "--kind", "masks"]
    assert main(command) == 2
    assert "images has 4 images" in capsys.readouterr().err


def test_one_image_left_of_many_is_not_given_their_masks(tmp_path, capsys):
    source = tmp_path / "in"
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    Image.fromarray(blobs(0).pixels).save(source / "images" / "0.png")
    for index in (1, 2):
        Image.fromarray(blobs(index).labels).save(source / "masks" / f"{index}.png")
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "masks/2.png is the label of no image" in capsys.readouterr().err


def test_one_image_with_a_mask_for_each_instance(tmp_path):
    write_bowl(tmp_path, [blobs(0)])
    assert main(["prepare", str(tmp_path / "case0"), "--out", str(tmp_path / "out")]) == 0
    expect(tmp_path / "out", [blobs(0)])


def test_classes_are_named_alike_in_every_file(tmp_path, capsys):
    """The first file has only the second class, the others both."""
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
    cases = [blobs(seed) for seed in range(3)]
    for index, case in enumerate(cases):
        classes = np.where(case.labels % 2, 1 if index else 2, 2 * (case.labels > 0))
        Image.fromarray(case.pixels).save(source / "images" / f"{index}.png")
        Image.fromarray(classes.astype(np.uint8)).save(source / "labels" / f"{index}.png")
    assert main(["prepare", str(source), "--out", str(out), "--classes", "A,B"]) == 0
    expect(out, cases)
    assert json.loads((out / "fingerprint.json").read_text())["classes"] == {"A": 10, "B": 17}
    assert "connected piece of a value is an instance; values are 1 A, 2 B" in (
        capsys.readouterr().out
    )


def test_connected_pieces_of_a_binary_mask(tmp_path):
    cases = [blobs(seed) for seed in range(3)]
    source = tmp_path / "in"
    source.mkdir()
    for index, case in enumerate(cases):
        Image.fromarray(case.pixels).save(source / f"{index}.png")
        Image.fromarray(((case.labels > 0) * 255).astype(np.uint8)).save(
            source / f"{index}_mask.png"
        )
    assert main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 0
    expect(tmp_path / "out", cases)
    command = ["prepare", str(source), "--out", str(tmp_path / "values"), "--instances", "values"]
    assert main(command) == 0
    assert {len(masks) for masks in masks_of(tmp_path / "values").values()} == {1}


def save_nifti(path, slices, affine):
    """`slices` `(N, H, W)`, anterior up, as a volume that `affine` places."""
    from nibabel import orientations

    ras = np.ascontiguousarray(slices[:, ::-1].transpose(2, 1, 0))
    target = orientations.io_orientation(affine)
    back = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), target_of(target))
    nibabel.Nifti1Image(orientations.apply_orientation(ras, back), affine).to_filename(path)


def target_of(orientation):
    """The same orientation as codes have it."""
    from nibabel import orientations

    return orientations.axcodes2ornt(orientations.ornt2axcodes(orientation))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_volumes_whatever_way_they_are_stored(nuclei, tmp_path, suffix, codes):
    from nibabel import orientations

    source = tmp_path / "in"
    for name in ("imagesTr", "labelsTr"):
        (source / name).mkdir(parents=True)
    sizes = {"R": 0.8, "A": 0.7, "S": 2.5, "L": 0.8, "P": 0.7, "I": 2.5}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, (axis, sign) in enumerate(orientations.axcodes2ornt(codes)):
        affine[int(axis), stored] = sign * sizes[codes[stored]]
    volume = np.stack([case.pixels for case in nuclei]).astype(np.int16) - 1024
    labels = np.stack([case.labels for case in nuclei])
    save_nifti(source / "imagesTr" / f"a_0000.{suffix}", volume, affine)
    save_nifti(source / "labelsTr" / f"a.{suffix}", labels, affine)
    out = tmp_path / "out"
    command = ["prepare", str(source), "--out", str(out), "--window", "CT:40,400", "--neighbours"]
    assert main([*command, "1", "--instances", "values"]) == 0
    expect(out, nuclei)
    content = json.loads((out / "train.json").read_text())
    assert content["images"][0]["spacing"] == [0.7, 0.8, 2.5]
    first = np.asarray(Image.open(out / "images" / content["images"][0]["file_name"]))
    grey = ((volume.astype(float) + 160) / 400 * 255).clip(0, 255).round()
    for channel, neighbour in enumerate((0, 0, 1)):
        assert np.abs(first[..., channel] - grey[neighbour]).max() <= 1
    assert not (out / "val.json").exists(), "slices of one volume are not divided"


@pytest.mark.slow
@pytest.mark.parametrize("frames", ["files", "label images"])
def test_a_dicom_series(nuclei, tmp_path, frames):
    source, out = tmp_path / "in", tmp_path / "out"
    slices = write_series(source / "images", nuclei)
    if frames == "files":
        write_segmentation(source / "seg.dcm", slices, nuclei)
    else:
        (source / "labels").mkdir()
        for index, case in enumerate(nuclei):
            (path,) = (source / "images").glob(f"IM?{index}.dcm")
            Image.fromarray(case.labels).save(source / "labels" / f"{path.stem}.png")
    assert main(["prepare", str(source), "--out", str(out), "--window", "CT:40,400"]) == 0
    expect(out, nuclei)
    content = json.loads((out / "train.json").read_text())
    assert content["categories"][0]["name"] == ("Cell" if frames == "files" else "object")
    assert content["images"][0]["spacing"] == [0.7, 0.8, 2.5]
    for image, case in zip(content["images"], nuclei, strict=True):
        written = np.asarray(Image.open(out / "images" / image["file_name"]))
        hu = case.pixels.astype(float) - 1024
        assert np.abs(written - ((hu + 160) / 400 * 255).clip(0, 255)).max() <= 1


def test_files_named_by_their_uid(tmp_path):
    cases = [blobs(seed, size=32, count=2) for seed in range(12)]
    (tmp_path / "in" / "labels").mkdir(parents=True)
    for index, data in enumerate(write_series(tmp_path / "dicom", cases)):
        uid = data.SOPInstanceUID
        data.save_as(tmp_path / "in" / uid, enforce_file_format=True)
        Image.fromarray(cases[index].labels).save(tmp_path / "in" / "labels" / f"{uid}.png")
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    expect(tmp_path / "out", cases)


def test_a_fractional_segmentation_begins_at_half(tmp_path):
    cases = [blobs(0, size=32, count=2), blobs(1, size=32, count=1)]
    slices = write_series(tmp_path / "in", cases)
    write_segmentation(tmp_path / "in" / "seg.dcm", slices, cases, inside=128, outside=127)
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    expect(tmp_path / "out", cases)


def test_a_segmentation_in_a_label_folder_of_the_source_counts_once(tmp_path):
    cases = [blobs(0, size=32, count=2), blobs(1, size=32, count=1)]
    source = tmp_path / "in"
    slices = write_series(source / "images", cases)
    (source / "truth").mkdir()
    write_segmentation(source / "truth" / "seg.dcm", slices, cases)
    command = ["prepare", str(source), "--labels", str(source / "truth")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    expect(tmp_path / "out", cases)
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert len(content["annotations"]) == 3


def test_segments_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    cases = [blobs(0), blobs(1)]
    slices = write_series(tmp_path / "in", cases)
    write_segmentation(tmp_path / "in" / "seg.dcm", slices, cases)
    monkeypatch.setattr(prepare_dicom, "BLOCK", 4 * cases[0].pixels.size)
    sizes = []
    read = prepare_dicom.Segmentation.values

    def counted(*args):
        values = read(*args)
        sizes.append(values.size)
        return values

    monkeypatch.setattr(prepare_dicom.Segmentation, "values", counted)
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    expect(tmp_path / "out", cases)
    assert max(sizes) == prepare_dicom.BLOCK


@pytest.mark.slow
def test_segmentations_are_not_all_in_memory(tmp_path):
    cases = [blobs(0, size=32, count=1)]
    for number in range(3):
        folder = tmp_path / str(number)
        slices = write_series(folder, cases, series=f"1.2.3.{number}")
        write_segmentation(folder / "seg.dcm", slices, cases)

    def held():
        gc.collect()
        return sum(type(thing) is prepare_dicom.Segmentation for thing in gc.get_objects())

    for stack in prepare_dicom.dicom_stacks(tmp_path, None, Labels(), None, 10**6, stop):
        assert held() == 0
        (slice_,) = read_slices(stack.source)
        assert len(stack.objects(slice_)) == 1 and held() == 1
        del stack


def test_coco_again_from_what_was_prepared(nuclei, tmp_path):
    write_bowl(tmp_path / "in", nuclei)
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["prepare", str(tmp_path / "in"), "--out", str(first), "--val", "0.5"]) == 0
    assert main(["prepare", str(first), "--out", str(second)]) == 0
    again = {name.split("_", 1)[1]: masks for name, masks in masks_of(second).items()}
    assert again == masks_of(first)
    for name in ("train", "val"):
        assert (second / f"{name}.json").is_file()
    shutil.rmtree(first)


@pytest.mark.slow
def test_blood_cells(real_data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", str(real_data / "bccd"), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "faults   2" in printed.out and printed.err.count("(no area)") == 2
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert sum(fingerprint["objects"].values()) == 4886
    assert fingerprint["images"] == {"train": 205, "val": 87, "test": 72}


@pytest.mark.slow
def test_photographs_in_cocos_own_layout(real_data, tmp_path):
    out = tmp_path / "out"
    assert main(["prepare", str(real_data / "coco"), "--out", str(out)]) == 0
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert fingerprint["images"] == {"train": 100, "val": 100}
    assert fingerprint["objects"] == {"train": 746, "val": 712}
    assert len(fingerprint["classes"]) == 80 and not fingerprint["rle"]
    annotations = json.loads((out / "val.json").read_text())["annotations"]
    given = json.loads((real_data / "coco/annotations/instances_val2017.json").read_text())
    expected = sorted(a["segmentation"] for a in given["annotations"])
    assert sorted(a["segmentation"] for a in annotations) == expected
