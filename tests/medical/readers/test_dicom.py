"""DICOM: transfer syntaxes, rescaling, windows, frames and the order of series."""

import numpy as np
import pytest

from normdet.data.window import Window, apply_window, window_limits
from normdet.errors import NormdetError
from normdet.medical.readers import find_sources, read_slices
from tests.medical.prepare.make import Case, blobs, dicom_image, write_series

pydicom = pytest.importorskip("pydicom")


def bundled(name):
    """A file that pydicom contains, without a download."""
    from pathlib import Path

    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    if not path.is_file():
        pytest.skip(f"this pydicom comes without {name}")
    return path


# Groups of files that hold the same image, the first uncompressed.
SAME = [
    ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_bigendian.dcm"],
    ["MR_small.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_implicit.dcm"],
    ["SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm"],
    ["SC_rgb_rle_2frame.dcm", "SC_rgb_rle_2frame.dcm"],
]


@pytest.mark.parametrize("names", SAME, ids=lambda names: names[-1])
def test_transfer_syntaxes_of_one_image(names):
    first, *others = (next(read_slices(bundled(name))) for name in names)
    for other in others:
        assert np.array_equal(first.pixels, other.pixels)
        assert first.pixels.dtype == other.pixels.dtype and other.pixels.dtype.isnative


@pytest.mark.parametrize(
    "name, shape, dtype",
    [
        ("693_J2KI.dcm", (512, 512), np.float32),
        ("JPEG2000.dcm", (1024, 256), np.int16),
        ("JPGExtended.dcm", (1024, 256), np.uint16),
        ("JPEGLSNearLossless_16.dcm", (50, 10), np.uint16),
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100, 3), np.uint8),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100, 3), np.uint8),
        ("examples_palette.dcm", (350, 800, 3), np.uint16),
    ],
)
def test_lossy_and_colour_files_decode(name, shape, dtype):
    slice_ = next(read_slices(bundled(name)))
    assert slice_.pixels.shape == shape and slice_.pixels.dtype == dtype
    assert slice_.pixels.std() > 1


def test_hounsfield_units_of_a_known_file():
    slice_ = next(read_slices(bundled("CT_small.dcm")))
    data = pydicom.dcmread(bundled("CT_small.dcm"))
    expected = data.pixel_array.astype(float) * data.RescaleSlope + data.RescaleIntercept
    assert slice_.pixels.dtype == np.float32 and np.array_equal(slice_.pixels, expected)
    assert slice_.spacing[:2] == pytest.approx((0.661468, 0.661468))


def test_reports_plans_and_doses_are_no_images():
    with pytest.raises(NormdetError, match="holds no image"):
        find_sources(bundled("rtplan.dcm"))


def test_truncated_pixels_are_named():
    with pytest.raises(NormdetError, match="MR_truncated.dcm has pixels that cannot be read"):
        list(read_slices(bundled("MR_truncated.dcm")))


def saved(data, path):
    data.save_as(path, enforce_file_format=True)
    return path


def test_monochrome1_is_inverted_with_its_window(tmp_path):
    case = Case(np.array([[0, 4095], [1000, 3000]], np.uint16), np.zeros((2, 2), int))
    plain = dicom_image(case, 0)
    plain.WindowCenter, plain.WindowWidth = [1000, 40], [2000, 400]
    one = next(read_slices(saved(plain, tmp_path / "a.dcm")))
    # The same picture, stored the other way round.
    flipped = dicom_image(Case(4095 - case.pixels, case.labels), 0)
    flipped.PhotometricInterpretation = "MONOCHROME1"
    flipped.WindowCenter, flipped.WindowWidth = 4095 - 2 * 1024 - 1000, 2000
    other = next(read_slices(saved(flipped, tmp_path / "b.dcm")))
    assert np.array_equal(one.pixels, other.pixels)
    assert one.window == other.window == (1000, 2000)


def test_the_files_window_is_pydicoms(tmp_path):
    from pydicom.pixels import apply_windowing

    data = dicom_image(blobs(0), 0)
    data.WindowCenter, data.WindowWidth = 200, 900
    slice_ = next(read_slices(saved(data, tmp_path / "a.dcm")))
    ours = apply_window(slice_.pixels, window_limits(Window("file"), [slice_]))
    # pydicom's output spans the stored bits.
    data.BitsStored = 12
    theirs = apply_windowing(slice_.pixels, data)
    theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min()) * 255
    assert np.abs(ours - theirs).max() <= 1


def enhanced(case_of_frame, order):
    """An enhanced multi-frame CT, whose frames have different slopes, windows and places."""
    data = dicom_image(case_of_frame[0], 0)
    for name in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "PixelSpacing"):
        delattr(data, name)
    del data.ImageOrientationPatient
    data.NumberOfFrames = len(order)
    data.PixelData = b"".join(case_of_frame[i].pixels.astype("<u2").tobytes() for i in order)

    def item(**values):
        part = pydicom.Dataset()
        for name, value in values.items():
            setattr(part, name, value)
        return part

    frames = []
    for place in order:
        frames.append(
            item(
                PixelValueTransformationSequence=[
                    item(RescaleSlope=place + 1, RescaleIntercept=-1024, RescaleType="HU")
                ],
                FrameVOILUTSequence=[item(WindowCenter=40 + place, WindowWidth=400)],
                PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3.0 * place])],
            )
        )
    data.PerFrameFunctionalGroupsSequence = frames
    data.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.6], SpacingBetweenSlices=3)],
        )
    ]
    return data


def test_frames_have_their_own_scale_window_and_place(tmp_path):
    cases = [blobs(seed) for seed in range(3)]
    path = saved(enhanced(cases, order=[2, 0, 1]), tmp_path / "a.dcm")
    slices = list(read_slices(path))
    assert [slice_.frame for slice_ in slices] == [1, 2, 0]
    for place, (slice_, case) in enumerate(zip(slices, cases, strict=True)):
        expected = case.pixels.astype(np.float32) * (place + 1) - 1024
        assert np.array_equal(slice_.pixels, expected)
        assert slice_.window == (40 + place, 400)
        assert slice_.spacing == (0.5, 0.6, 3.0)
    assert len({slice_.name for slice_ in slices}) == 3


@pytest.mark.parametrize("position", [b"x.y", b"nan", b"1e9", b""])
def test_places_that_are_no_numbers_leave_the_frames_as_stored(tmp_path, position):
    cases = [blobs(seed, size=32, count=1) for seed in range(3)]
    path = saved(enhanced(cases, order=[2, 0, 1]), tmp_path / "a.dcm")
    content = path.read_bytes()
    assert content.count(b"\\6.0") == 1
    path.write_bytes(content.replace(b"\\6.0", b"\\" + position.ljust(3)))
    slices = list(read_slices(path))
    assert [slice_.frame for slice_ in slices] == [0, 1, 2]


@pytest.mark.parametrize("frames", [1_900_000_000, 2, -3])
def test_more_frames_than_there_are_pixels_for(tmp_path, frames):
    data = dicom_image(Case(np.ones((1, 1), np.uint16), np.zeros((1, 1), int)), 0)
    data.NumberOfFrames = frames
    saved(data, tmp_path / "a.dcm")
    saved(dicom_image(blobs(0), 1), tmp_path / "b.dcm")
    faults = []
    (good,) = read_slices(tmp_path, report=faults.append)
    assert good.source.name == "b.dcm"
    (fault,) = faults
    assert f"a.dcm has pixels that cannot be read: for {frames} frames at least" in fault


def test_more_frames_than_there_are_compressed_pixels_for(tmp_path):
    data = pydicom.dcmread(bundled("SC_rgb_rle_2frame.dcm"))
    assert len(list(read_slices(saved(data, tmp_path / "a.dcm")))) == 2
    data.NumberOfFrames = 3
    saved(data, tmp_path / "a.dcm")
    faults = []
    assert not list(read_slices(tmp_path, report=faults.append))
    (fault,) = faults
    assert "for 3 frames at least 3 fragments are needed, and there are 2" in fault


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_a_scale_that_is_no_number_is_a_fault(tmp_path, name):
    data = dicom_image(blobs(0, size=32, count=1), 0)
    setattr(data, name, 777)
    path = saved(data, tmp_path / "a.dcm")
    content = path.read_bytes()
    assert content.count(b"777.0 ") == 1
    path.write_bytes(content.replace(b"777.0 ", b"inf   "))
    with pytest.raises(NormdetError, match="a.dcm has pixels that cannot be read"):
        list(read_slices(path))


def test_a_series_is_sorted_by_place_whatever_its_names_and_numbers(tmp_path):
    cases = [blobs(seed) for seed in range(5)]
    write_series(tmp_path, cases)
    (source,) = find_sources(tmp_path)
    slices = list(read_slices(source))
    for slice_, case in zip(slices, cases, strict=True):
        assert np.array_equal(slice_.pixels, case.pixels.astype(np.float32) - 1024)
        assert slice_.spacing == (0.7, 0.8, 2.5)
    assert [slice_.index for slice_ in slices] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("spacing", [r"0\0", r"-1\-1", r"abc\d", "0.5", r"nan\1"])
def test_a_spacing_that_cannot_be_is_none(spacing, tmp_path):
    data = dicom_image(blobs(0), 0)
    data.PixelSpacing = [0.7777, 0.8888]
    path = saved(data, tmp_path / "a.dcm")
    content = path.read_bytes()
    assert content.count(rb"0.7777\0.8888") == 1
    path.write_bytes(content.replace(rb"0.7777\0.8888", spacing.ljust(13).encode()))
    assert next(read_slices(path)).spacing is None


def test_without_positions_the_instance_number_sorts(tmp_path):
    for index in range(3):
        data = dicom_image(blobs(index), index)
        del data.ImagePositionPatient
        saved(data, tmp_path / f"{index}.dcm")
    slices = list(read_slices(tmp_path))
    # Numbered from the last to the first.
    for slice_, seed in zip(slices, (2, 1, 0), strict=True):
        assert np.array_equal(slice_.pixels, blobs(seed).pixels.astype(np.float32) - 1024)


def test_a_gap_is_reported_with_the_place(tmp_path):
    write_series(tmp_path, [blobs(seed) for seed in range(6)])
    next(tmp_path.glob("IM?2.dcm")).unlink()
    faults = []
    assert len(list(read_slices(tmp_path, report=faults.append))) == 5
    (fault,) = faults
    assert "no slice at 5.0 mm along its normal (5 slices, one each 2.50 mm)" in fault
    with pytest.raises(NormdetError, match="has gaps"):
        list(read_slices(tmp_path))


def test_a_place_far_off_makes_no_list_without_end(tmp_path):
    for index, place in enumerate([0, 0.01, 0.02, 9e5]):
        data = dicom_image(blobs(0, size=32, count=1), index)
        data.ImagePositionPatient = [0, 0, place]
        saved(data, tmp_path / f"{index}.dcm")
    faults = []
    assert len(list(read_slices(tmp_path, report=faults.append))) == 4
    (fault,) = faults
    assert "no slice at 0.0, 0.0" in fault and ", ... mm" in fault and len(fault) < 250


def test_neighbours_are_channels(tmp_path):
    cases = [blobs(seed) for seed in range(4)]
    write_series(tmp_path, cases)
    hu = [case.pixels.astype(np.float32) - 1024 for case in cases]
    for index, slice_ in enumerate(read_slices(tmp_path, neighbours=2)):
        before = index - 2 if index >= 2 else index
        after = index + 2 if index + 2 < 4 else index
        for channel, place in enumerate((before, index, after)):
            assert np.array_equal(slice_.pixels[..., channel], hu[place])


def test_a_slice_of_another_size_is_no_neighbour(tmp_path):
    cases = [blobs(0), blobs(1, size=64), blobs(2)]
    write_series(tmp_path, cases)
    shapes = [slice_.pixels.shape for slice_ in read_slices(tmp_path, neighbours=1)]
    assert shapes == [(96, 96, 3), (64, 64, 3), (96, 96, 3)]


@pytest.mark.parametrize("syntax", ["DeflatedExplicitVRLittleEndian", "JPEG2000Lossless"])
def test_files_that_unpack_to_far_more_are_refused(tmp_path, syntax):
    """Deflated, by the bytes that come out; compressed, by the size that the header states."""
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    data, data.file_meta = Dataset(), FileMetaDataset()
    data.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows = data.Columns = 10_000
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    deflated = syntax.startswith("Deflated")
    data.PixelData = bytes(200_000_000) if deflated else encapsulate([bytes(100)])
    data["PixelData"].VR = "OW" if deflated else "OB"
    data["PixelData"].is_undefined_length = not deflated
    data.save_as(tmp_path / "bomb.dcm", enforce_file_format=True)
    with pytest.raises(NormdetError, match=r"bomb\.dcm unpacks to .* compression bomb"):
        list(read_slices(tmp_path / "bomb.dcm"))
