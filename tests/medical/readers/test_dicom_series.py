"""A series is read in the order of space; a mixed one is split and never interleaved."""

import itertools

import numpy as np
import pytest

from normdet.medical.readers import read_slices
from tests.medical.prepare.make import blobs, dicom_image

pytest.importorskip("pydicom")


def save(folder, entries, size=16):
    """Files of one series; of each `(place, value, tags)` pixels of `value`, in a mixed order."""
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(0).permutation(len(entries))
    for number, index in enumerate(order):
        place, value, tags = entries[index]
        data = dicom_image(blobs(0, size=32, count=1), int(index))
        data.PixelData = np.full((32, 32), value, "<u2").tobytes()
        data.RescaleIntercept = 0
        if place is not None:
            data.ImagePositionPatient = [0, 0, place]
        data.InstanceNumber = number
        for name, text in tags.items():
            if text is None:
                delattr(data, name)
            else:
                setattr(data, name, text)
        data.save_as(folder / f"f{number:03d}.dcm", enforce_file_format=True)


def runs(folder, report=None):
    """The values of each run of slices, in order."""
    slices = list(read_slices(folder, **({"report": report} if report else {})))
    return [
        [int(one.pixels[0, 0]) for one in group]
        for _, group in itertools.groupby(slices, key=lambda one: one.stack)
    ]


MIXES = {
    "two acquisitions": lambda k: {"AcquisitionNumber": k + 1},
    "echoes": lambda k: {"EchoNumbers": k + 1},
    "times": lambda k: {"TemporalPositionIdentifier": k + 1},
    "b values": lambda k: {"DiffusionBValue": 1000.0 * k},
    "kinds of image": lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "MP"[k] + "_FFE"]},
    "trigger times": lambda k: {"TriggerTime": 10.0 * k},
}


@pytest.mark.parametrize("mix", MIXES)
def test_slices_at_the_same_places_are_split(tmp_path, mix):
    entries = [(2.5 * z, 100 * k + z, MIXES[mix](k)) for k in range(2) for z in range(4)]
    save(tmp_path / "s", entries)
    assert runs(tmp_path / "s") == [[0, 1, 2, 3], [100, 101, 102, 103]]


def test_acquisitions_that_interleave_are_split_and_those_side_by_side_are_one(tmp_path):
    entries = [(5 * z + 2.5 * k, 100 * k + z, {"AcquisitionNumber": k}) for k in (0, 1)
               for z in range(3)]  # fmt: skip
    save(tmp_path / "a", entries)
    assert runs(tmp_path / "a") == [[0, 1, 2], [100, 101, 102]]
    entries = [(5 * (3 * k + z), 100 * k + z, {"AcquisitionNumber": k}) for k in (0, 1)
               for z in range(3)]  # fmt: skip
    save(tmp_path / "b", entries)
    assert runs(tmp_path / "b") == [[0, 1, 2, 100, 101, 102]]


def test_slices_that_no_tag_distinguishes_are_left_out_and_reported(tmp_path):
    tags = {"InstanceNumber": 7}
    save(tmp_path / "s", [(2.5 * z, 100 * k + z, tags) for k in range(2) for z in range(3)])
    said = []
    with pytest.raises(Exception, match="holds no image|tells apart"):
        list(read_slices(tmp_path / "s"))
    assert runs(tmp_path / "s", said.append) == []
    assert "several images at one place that no tag tells apart" in said[0]


def test_a_scout_in_the_series_is_by_itself(tmp_path):
    entries = [(2.5 * z, z, {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}) for z in range(3)]
    entries.append((1.0, 500, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}))
    save(tmp_path / "s", entries)
    assert sorted(runs(tmp_path / "s")) == [[0, 1, 2], [500]]


def test_a_slice_without_a_position_costs_no_other_its_place(tmp_path):
    entries = [(2.5 * (3 - z), z, {}) for z in range(4)]
    entries.append((None, 500, {"ImagePositionPatient": None}))
    save(tmp_path / "s", entries)
    assert sorted(runs(tmp_path / "s")) == [[3, 2, 1, 0], [500]]


def test_an_image_that_is_there_twice_counts_once(tmp_path):
    save(tmp_path / "s", [(2.5 * z, z, {}) for z in range(3)])
    first = sorted((tmp_path / "s").iterdir())[0]
    (tmp_path / "s" / "copy.dcm").write_bytes(first.read_bytes())
    said = []
    assert runs(tmp_path / "s", said.append) == [[0, 1, 2]]
    assert "the same image" in said[0]


def test_neighbours_are_of_the_same_run(tmp_path):
    entries = [(2.5 * z, 100 * k + z, {"EchoNumbers": k + 1}) for k in range(2) for z in range(2)]
    save(tmp_path / "s", entries)
    channels = [one.pixels[0, 0].tolist() for one in read_slices(tmp_path / "s", neighbours=1)]
    assert channels == [[0, 0, 1], [0, 1, 1], [100, 100, 101], [100, 101, 101]]


OPTIONAL = (
    "PatientID PatientName StudyInstanceUID FrameOfReferenceUID Modality Manufacturer SeriesNumber "
    "InstanceNumber ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness "
    "RescaleSlope RescaleIntercept SeriesInstanceUID PixelRepresentation SamplesPerPixel "
    "PhotometricInterpretation BitsStored HighBit"
).split()


@pytest.mark.parametrize("tag", OPTIONAL)
def test_no_optional_tag_costs_the_image(tmp_path, tag):
    data = dicom_image(blobs(0, size=32, count=1), 0)
    if tag == "RescaleSlope":
        del data.RescaleIntercept
    delattr(data, tag)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (one,) = read_slices(tmp_path)
    assert one.pixels.shape == (32, 32)
    offset = 0 if tag.startswith("Rescale") else 1024
    assert np.array_equal(one.pixels + offset, blobs(0, size=32, count=1).pixels)


@pytest.mark.parametrize("text", [b"n/a ", b"1\\2 ", b"NaN ", b"\xff\xfe"])
def test_a_number_of_frames_that_is_none_costs_no_image(tmp_path, text):
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    data, tag = dicom_image(blobs(0, size=32, count=1), 0), Tag(0x00280008)
    data._dict[tag] = RawDataElement(tag, "IS", len(text), text, 0, False, True)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    (one,) = read_slices(tmp_path)
    assert one.pixels.shape == (32, 32)
