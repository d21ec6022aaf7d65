"""NIfTI volumes; how they are turned is tested with what prepare makes of them."""

import gzip
import struct

import numpy as np
import pytest

from normdet.errors import NormdetError
from normdet.medical.readers import read_slices
from normdet.medical.readers.nifti import check_same_grid

nibabel = pytest.importorskip("nibabel")


@pytest.fixture
def volume(tmp_path):
    """`a.nii.gz`, 4 x 5 x 6 voxels of 1 x 2 x 3 mm with different values."""
    data = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    image = nibabel.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]))
    image.to_filename(tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz", data


@pytest.mark.parametrize(
    "axis, shape, spacing",
    [
        ("sagittal", (4, 6, 5), (3, 2, 1)),
        ("coronal", (5, 6, 4), (3, 1, 2)),
        ("axial", (6, 5, 4), (2, 1, 3)),
    ],
)
def test_axes(volume, axis, shape, spacing):
    path, data = volume
    slices = list(read_slices(path, axis=axis))
    number = ("sagittal", "coronal", "axial").index(axis)
    assert (len(slices), *slices[0].pixels.shape) == shape
    assert slices[0].spacing == spacing and slices[0].pixels.dtype == np.int16
    for index, slice_ in enumerate(slices):
        expected = np.take(data, index, axis=number)
        assert np.array_equal(slice_.pixels, expected.T[::-1])


def test_a_scale_gives_units(tmp_path):
    data = np.arange(27, dtype=np.int16).reshape(3, 3, 3)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(2, -10)
    image.to_filename(tmp_path / "a.nii")
    # Under a scale that is set, nibabel stores what it is given as it is.
    slice_ = next(read_slices(tmp_path / "a.nii"))
    assert slice_.pixels.dtype == np.float32
    assert np.array_equal(slice_.pixels, 2 * data[..., 0].T[::-1] - 10)


@pytest.mark.parametrize("unit, mm", [("micron", 0.001), ("meter", 1000), ("unknown", 1)])
def test_spacing_is_in_mm_whatever_the_unit(volume, unit, mm):
    path, _ = volume
    image = nibabel.load(path)
    image.header.set_xyzt_units(unit)
    image.to_filename(path)
    assert next(read_slices(path)).spacing == pytest.approx((2 * mm, mm, 3 * mm))
    # A code that the standard does not have.
    image.header["xyzt_units"] = 7
    image.to_filename(path)
    assert next(read_slices(path)).spacing == (2, 1, 3)


def test_a_trailing_axis_of_one_is_no_dimension(tmp_path):
    nibabel.Nifti1Image(np.zeros((3, 4, 5, 1), np.uint8), np.eye(4)).to_filename(tmp_path / "a.nii")
    assert len(list(read_slices(tmp_path / "a.nii"))) == 5
    nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.uint8), np.eye(4)).to_filename(tmp_path / "b.nii")
    with pytest.raises(NormdetError, match="has 4 dimensions"):
        list(read_slices(tmp_path / "b.nii"))


def test_damaged_volumes_are_named(volume, tmp_path):
    path, _ = volume
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(NormdetError, match=r"a.nii.gz is (damaged|not a NIfTI)"):
        list(read_slices(path))
    path.write_bytes(b"no volume")
    with pytest.raises(NormdetError, match="not a NIfTI file"):
        list(read_slices(path))


def test_a_header_that_asks_for_all_memory_is_refused(volume):
    path, _ = volume
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = struct.pack("<3h", 30_000, 30_000, 30_000)
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(NormdetError, match="has 30000x30000 pixels, more than"):
        list(read_slices(path))
    content[42:48] = struct.pack("<3h", 9_000, 9_000, 30_000)
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(NormdetError, match="has 30000 slices of 9000x9000 pixels"):
        list(read_slices(path))


def moved(image, rotation=0.0, shift=0.0, unit="unknown"):
    """The same voxels elsewhere: turned about the second axis, and shifted along it."""
    affine = image.affine.copy()
    cos, sin = np.cos(rotation), np.sin(rotation)
    affine[:3, :3] = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) @ affine[:3, :3]
    affine[1, 3] += shift
    result = nibabel.Nifti1Image(np.asarray(image.dataobj), affine)
    result.header.set_xyzt_units(unit)
    return result


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_a_label_may_be_stored_another_way_than_its_image(volume, tmp_path, codes):
    path, _ = volume
    image = moved(nibabel.load(path), rotation=0.3, shift=7)
    image.to_filename(path)
    orientations = nibabel.orientations
    way = orientations.ornt_transform(
        orientations.io_orientation(image.affine), orientations.axcodes2ornt(codes)
    )
    image.as_reoriented(way).to_filename(tmp_path / "label.nii")
    check_same_grid(tmp_path / "label.nii", path)


@pytest.mark.parametrize(
    "options, apart",
    [
        ({"shift": 0.09}, None),
        ({"shift": 0.11}, "0.11"),
        ({"shift": 110, "unit": "micron"}, "0.11"),
        # Small turns show at the far corners, 15.3 mm from the first.
        ({"rotation": 0.006}, None),
        ({"rotation": 0.008}, "0.122"),
        ({"rotation": np.pi / 2}, "voxels"),
    ],
)
def test_a_label_on_another_grid_is_refused(volume, tmp_path, options, apart):
    path, _ = volume
    image = nibabel.load(path)
    if options.get("unit") == "micron":
        image.set_sform(np.diag([1000, 1000, 1000, 1]) @ image.affine)
        image.header.set_xyzt_units("micron")
        image.to_filename(path)
        image = nibabel.load(path)
    label = tmp_path / "label.nii"
    moved(image, **options).to_filename(label)
    if apart is None:
        check_same_grid(label, path)
        return
    sentence = (
        "voxels, its image" if apart == "voxels" else f"corners are {apart} mm apart, and 0.1 are"
    )
    with pytest.raises(NormdetError, match=f"label.nii .*{sentence}"):
        check_same_grid(label, path)


def test_a_label_of_other_sizes_is_refused(volume, tmp_path):
    path, data = volume
    nibabel.Nifti1Image(data[:, :, :5], np.diag([1.0, 2, 3, 1])).to_filename(tmp_path / "b.nii")
    with pytest.raises(NormdetError, match="b.nii has 4x5x5 voxels, its image .*a.nii.gz 4x5x6"):
        check_same_grid(tmp_path / "b.nii", path)
