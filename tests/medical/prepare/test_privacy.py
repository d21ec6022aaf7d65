"""Nothing that identifies a patient leaves the source's files."""

import json
import logging
import re
import shutil
import stat

import numpy as np
import pydicom
import pytest
from PIL import Image

from normdet.cli import main
from normdet.errors import NormdetError
from normdet.medical.predict import command as predict
from normdet.medical.predict.overlay import draw
from normdet.medical.readers import find_sources, read_slices
from tests.files.test_anonymous import NAME
from tests.medical.predict.fake import run
from tests.medical.prepare.make import SECRETS, blobs, dicom_image, write_segmentation, write_series
from tests.medical.prepare.test_formats import EXPORTS


def write_patients(source):
    """Two patients with two series each; the files of one are broken in many ways."""
    cases = [blobs(seed) for seed in range(3)]
    for number, patient in enumerate(("MRN-424242", "MRN-424242-B")):
        for part in range(2):
            series = f"1.2.3.{number + 1}{part}"
            folder = source / f"p{number}{part}"
            slices = write_series(folder, cases, patient=patient, series=series)
            write_segmentation(folder / "seg.dcm", slices, cases)
    broken = dicom_image(cases[0], 7, series="1.2.9")
    broken.PixelData = broken.PixelData[:100]
    broken.save_as(source / "short.dcm", enforce_file_format=True)
    wrong = dicom_image(cases[0], 8, series="1.2.10")
    wrong.Rows = 40_000
    wrong.Columns = 40_000
    wrong.save_as(source / "large.dcm", enforce_file_format=True)
    (source / "junk.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"Zaphod^Beeblebrox" * 99)
    odd = (source / "short.dcm").read_bytes().replace(b"1.2.9.8", b"Zaphod^")
    (source / "odd.dcm").write_bytes(odd)


def test_no_tag_is_copied_or_logged(tmp_path, capfd, caplog):
    source, out = tmp_path / "in", tmp_path / "out"
    write_patients(source)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    given = b"".join(path.read_bytes() for path in source.rglob("*.dcm"))
    assert all(secret.encode() in given for secret in SECRETS), "the test must have what to find"
    assert main(["prepare", str(source), "--out", str(out), "--val", "0.5"]) == 0
    printed = "".join(capfd.readouterr())
    assert "faults   0" not in printed
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(written) > 12
    for secret in (*SECRETS, "1.2.3.10", "1.2.3.21"):
        for path, content in written.items():
            assert secret.encode() not in content and secret not in path.name, path
        assert secret not in printed and secret not in caplog.text


def test_a_stop_names_the_file_and_no_tag(tmp_path, capfd):
    source = tmp_path / "in"
    write_patients(source)
    command = ["prepare", str(source), "--out", str(tmp_path / "out"), "--on-error", "stop"]
    assert main(command) == 2
    printed = "".join(capfd.readouterr())
    assert re.search(r"file \d+ ", printed) and not any(one in printed for one in SECRETS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out-names.csv"]


@pytest.mark.slow
def test_series_of_a_patient_stay_together(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_patients(source)
    assert main(["prepare", str(source), "--out", str(out), "--val", "0.5"]) == 0
    patients = {}
    for name in ("train", "val"):
        images = json.loads((out / f"{name}.json").read_text())["images"]
        assert len(images) == 6
        patients[name] = {image["patient"] for image in images}
    assert patients["train"].isdisjoint(patients["val"])
    assert patients["train"] | patients["val"] == {1, 2}


def write_visits(source):
    """Two patients with two visits each, which gave them other numbers."""
    for patient in "ab":
        for visit in "12":
            folder = source / f"{patient}-{visit}"
            series, cases = f"1.2.{ord(patient)}.{visit}", [blobs(0, size=32, count=1)]
            slices = write_series(folder, cases, series=series, patient=patient + visit)
            write_segmentation(folder / "seg.dcm", slices, cases)


def test_a_pattern_goes_before_the_patient_of_the_file(tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    write_visits(source)
    command = ["prepare", str(source), "--out", str(out), "--overwrite", "--val", "0.5"]
    for options, each, number in (([], 1, 4), (["--patient", r"^(\w)-\d"], 2, 2)):
        assert main([*command, *options]) == 0
        patients = [
            [image["patient"] for image in json.loads((out / f"{name}.json").read_text())["images"]]
            for name in ("train", "val")
        ]
        assert len({*patients[0], *patients[1]}) == number
        assert all(len(part) == 2 and len(set(part)) == 2 // each for part in patients)


def test_a_run_goes_on_with_a_pattern_it_did_not_have(tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    write_visits(source)
    command = ["prepare", str(source), "--out", str(out), "--val", "0.5"]
    with monkeypatch.context() as patch:
        patch.setattr("normdet.medical.prepare.command.draw", lambda *_: 1 / 0)
        with pytest.raises(SystemExit):  # told without names
            main(command)
    assert main([*command, "--patient", r"^(\w)-\d"]) == 0
    for name in ("train", "val"):
        images = json.loads((out / f"{name}.json").read_text())["images"]
        assert len({image["patient"] for image in images}) == 1 and len(images) == 2


def test_a_series_is_of_one_patient(tmp_path, capsys):
    write_visits(tmp_path / "in")
    (tmp_path / "in" / "c-1").mkdir()
    dicom_image(blobs(2, size=32, count=1), 5, series="1.2.97.1").save_as(
        tmp_path / "in" / "c-1" / "x.dcm", enforce_file_format=True
    )
    command = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main([*command, "--patient", r"^(\w)-\d"]) == 0
    assert "are of one series, of two patients by --patient" in capsys.readouterr().err


def test_a_patients_key_is_equal_within_a_process_and_tells_nothing(tmp_path):
    write_series(tmp_path, [blobs(0)])
    (slice_,) = read_slices(tmp_path)
    (again,) = read_slices(find_sources(tmp_path)[0])
    assert slice_.patient == again.patient
    assert "424242" not in slice_.patient
    import hashlib

    guesses = [hash_(b"MRN-424242").hexdigest() for hash_ in (hashlib.sha256, hashlib.blake2b)]
    assert not any(slice_.patient in guess for guess in guesses)


def test_without_a_patient_id_the_study_groups(tmp_path):
    for index in range(2):
        data = dicom_image(blobs(0), index, series=f"1.2.{index}")
        del data.PatientID
        data.StudyInstanceUID = "1.2.3"
        data.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    first, second = read_slices(tmp_path)
    assert first.patient is not None and first.patient == second.patient
    assert pydicom.dcmread(tmp_path / "0.dcm").get("PatientID") is None


@pytest.mark.parametrize("name", ["Zaphod^Beeblebrox.dcm", "MRN-424242"])
def test_files_of_dicom_give_no_names(tmp_path, name):
    dicom_image(blobs(0), 0).save_as(tmp_path / name, enforce_file_format=True)
    assert [slice_.name for slice_ in read_slices(tmp_path)] == ["series0001"]


def plant(folder):
    """Images and labels in folders and files of a patient's name; every second is broken."""
    root = folder / f"study of {NAME}"
    for name in ("images", "labels"):
        (root / name / NAME).mkdir(parents=True)
    for index in range(3):
        case = blobs(index)
        for name, pixels in (("images", case.pixels), ("labels", case.labels)):
            Image.fromarray(pixels).save(root / name / NAME / f"{NAME} {index}.png")
    broken = root / "images" / NAME / f"{NAME}.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + NAME.encode())
    (root / "images" / f"{NAME}.tif").write_bytes(b"II*\0" + NAME.encode() * 9)
    shutil.copy(root / "labels" / NAME / f"{NAME} 0.png", root / "labels" / NAME / f"{NAME}.png")
    Image.fromarray(blobs(0, size=64).labels).save(root / "images" / NAME / "without label.png")
    (root / "images" / f"out {NAME}.png").symlink_to("/etc/hostname")
    return root


def plant_coco(folder):
    """A COCO file that names a patient in its own name, its images, and one that is not there."""
    root = folder / NAME
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for index, name in enumerate([f"{NAME}-1.png", f"a {NAME}.png", f"gone/{NAME}.png"], start=1):
        images.append({"id": index, "file_name": name, "height": 96, "width": 96})
        annotations.append(
            {"id": index, "image_id": index, "category_id": 1, "bbox": [4, 4, 40, 30]}
        )
        if index < 3:
            Image.fromarray(blobs(index).pixels.astype(np.uint8)).save(root / "images" / name)
    annotations.append({"id": 9, "image_id": 1, "category_id": 1, "bbox": [4, 4, -40, 30]})
    content = {
        "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}],
    }  # fmt: skip
    (root / f"{NAME}.json").write_text(json.dumps(content))
    return root


def plant_dicom(folder):
    """Series whose folders and files are named after patients; some are broken."""
    write_patients(folder / NAME)
    for number, path in enumerate(sorted((folder / NAME).rglob("*.dcm"))):
        path.rename(path.with_name(f"{NAME} {number}.dcm"))
    return folder / NAME


def all_that_is_told(out, key, capfd, caplog):
    """Every file below `out` with its name, and what was printed and logged."""
    files = [path for path in out.rglob("*") if path.is_file()]
    told = [str(path.relative_to(out)).encode() for path in out.rglob("*")]
    told += [path.read_bytes() for path in files]
    # Compressed pictures hold no text but that which is drawn.
    told += ["".join(capfd.readouterr()).encode(), caplog.text.encode()]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and NAME in key.read_text()
    return told


@pytest.mark.slow
@pytest.mark.parametrize("make", [plant, plant_coco, plant_dicom])
@pytest.mark.parametrize("on_error", ["skip", "stop"])
def test_names_of_files_and_folders_become_numbers(tmp_path, capfd, caplog, make, on_error):
    source, out = make(tmp_path / "in"), tmp_path / "out"
    flags = [] if make is plant_dicom else ["--anonymize"]
    command = ["prepare", str(source), "--out", str(out), "--on-error", on_error, *flags]
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    assert main(command) == (0 if on_error == "skip" else 2)
    told = all_that_is_told(out, tmp_path / "out-names.csv", capfd, caplog)
    for content in told:
        assert NAME.encode() not in content and b"Zaphod" not in content, content[:500]
    assert b"file " in told[-2], "faults are named by numbers"


# Where an export names an image, in quotes, tags, cells and addresses.
_NAMED = re.compile(
    r'(?<![\w.])([abc])(?=\.(?:png|tif)\b)|^([abc])(?=,)|(?<="id": ")([abc])', re.M
)


def plant_in(root, make):
    """An export whose images are called after a patient; one is missing, one is broken."""
    make(root)
    for path in sorted(root.rglob("*")):
        if path.is_file() and re.match(r"[abc]\b", path.name):
            path = path.rename(path.with_name(f"{NAME}-{path.name}"))
        if path.suffix in (".png", ".tif") and re.search(r"-[bc]\.", path.name):
            path.write_bytes(NAME.encode()) if "-b." in path.name else path.unlink()
        elif path.is_file() and path.suffix.lower() not in (".png", ".tif"):
            path.write_text(_NAMED.sub(lambda match: f"{NAME}-{match[0]}", path.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("tool", EXPORTS)
@pytest.mark.parametrize("on_error", ["skip", "stop"])
def test_names_in_the_files_of_tools_become_numbers(tmp_path, capfd, caplog, tool, on_error):
    plant_in(tmp_path / "in" / NAME, EXPORTS[tool][0])
    out = tmp_path / "out"
    caplog.set_level(logging.DEBUG)
    command = ["prepare", str(tmp_path / "in" / NAME), "--out", str(out), "--anonymize"]
    main([*command, "--on-error", on_error, "--kind", EXPORTS[tool][1]])
    told = all_that_is_told(out, tmp_path / "out-names.csv", capfd, caplog)
    for content in told:
        assert b"Zaphod" not in content, content[:500]
    if tool != "cvat of a video":  # which names no image
        assert b"a file" in told[-2] or b"file " in told[-2]


def test_text_that_serves_as_an_id_is_hidden(tmp_path, capfd, caplog):
    root = plant_coco(tmp_path / "in")
    path = root / f"{NAME}.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        entry["id"] = f"Zaphod {entry['id']}"
    for entry in content["annotations"]:
        entry |= {"id": f"of Zaphod {entry['id']}", "image_id": f"Zaphod {entry['image_id']}"}
    content["annotations"][0]["image_id"] = "Trillian"
    path.write_text(json.dumps(content))
    assert main(["prepare", str(root), "--out", str(tmp_path / "out"), "--anonymize"]) == 0
    told = all_that_is_told(tmp_path / "out", tmp_path / "out-names.csv", capfd, caplog)
    for content in told:
        assert b"Zaphod" not in content and b"Trillian" not in content, content[:500]


def test_predictions_go_by_numbers(tmp_path, capfd, caplog, monkeypatch):
    drawn = []
    monkeypatch.setattr(predict, "draw", lambda *args: drawn.append(args[-1]) or draw(*args))
    source, out = plant(tmp_path / "in") / "images", tmp_path / "out"
    caplog.set_level(logging.DEBUG)
    code, _ = run(source, out, "--anonymize")
    assert code == 1
    told = all_that_is_told(out, tmp_path / "out-names.csv", capfd, caplog)
    for content in [*told, *(title.encode() for title in drawn)]:
        assert b"Zaphod" not in content and b"without label" not in content, content[:500]
    assert len(drawn) == 4 and all(re.fullmatch(r"image\d{6}", title) for title in drawn)
    # Numbers stay the same when files are added, so nothing is predicted twice.
    case = Image.fromarray(blobs(9).pixels)
    case.save(source / "Aaron.png")
    drawn.clear()
    assert run(source, out, "--anonymize")[0] == 1 and len(drawn) == 1
    with pytest.raises(NormdetError, match="anonymized was True and is False"):
        run(source, out)


def test_errors_are_hidden_too(tmp_path, capfd):
    folder = tmp_path / f"{NAME} {NAME}"
    folder.mkdir()
    assert main(["prepare", str(folder), "--out", str(tmp_path / "out"), "--anonymize"]) == 2
    assert main(["prepare", f"{folder}/x", "--out", str(tmp_path / "out"), "--anonymize"]) == 2
    assert NAME not in "".join(capfd.readouterr())
