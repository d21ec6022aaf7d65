"""HDF5 as ilastik exports it, read by a process of its own."""

import json

import numpy as np
import pytest
from PIL import Image

from normdet.cli import main
from normdet.errors import NormdetError
from normdet.medical.prepare.ilastik import read_labels

h5py = pytest.importorskip("h5py")


def write(path, labels, axes="", name="exported_data", **options):
    with h5py.File(path, "w") as file:
        array = file.create_dataset(name, data=labels, **options)
        if axes:
            array.attrs["axistags"] = json.dumps({"axes": [{"key": axis} for axis in axes]})


@pytest.mark.parametrize("axes", ["yx", "yxc", "zyxc", "tzyxc", "xy", "xzy"])
def test_axes_are_those_of_the_file(tmp_path, axes):
    labels = np.arange(20, dtype=np.uint32).reshape(4, 5)
    order = [axis for axis in axes if axis in "yx"]
    shape = [1 if axis not in "yx" else labels.shape["yx".index(axis)] for axis in axes]
    stored = labels if order == ["y", "x"] else labels.T
    write(tmp_path / "a.h5", stored.reshape(shape), axes, compression="gzip")
    assert np.array_equal(read_labels(tmp_path / "a.h5", 1000).reshape(4, 5), labels)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [bool, np.uint8, ">i2", np.int64])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (3, 4, 5, 1)])
def test_arrays_without_tags(tmp_path, shape, dtype):
    labels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    write(tmp_path / "a.hdf5", labels, name="any")
    assert np.array_equal(read_labels(tmp_path / "a.hdf5", 1000), labels.reshape(shape[:3]))


@pytest.mark.slow
def test_what_is_no_label_image_is_named(tmp_path):
    path = tmp_path / "a.h5"
    for labels, axes, said in (
        (np.zeros((4, 5), np.float32), "", "is no label image: an array"),
        (np.zeros((4, 5, 2), np.uint8), "yxc", "is no label image"),
        (np.zeros(4, np.uint8), "", "is no label image"),
        (np.zeros((4, 5), np.uint8), "yy", "is no label image"),
        (np.zeros((40, 50), np.uint8), "", r"has 50x40 pixels, more than the 1,000 that are read"),
        (np.zeros((900, 5, 5), np.uint8), "", "has 900 slices of 5x5 pixels"),
    ):
        write(path, labels, axes)
        with pytest.raises(NormdetError, match=f"a.h5 {said}"):
            read_labels(path, 1000)
    path.write_bytes(b"\x89HDF\r\n")
    with pytest.raises(NormdetError, match="cannot be read as HDF5 .*: export it as tif or png"):
        read_labels(path, 1000)


def test_other_files_are_not_read(tmp_path):
    write(tmp_path / "other.h5", np.ones((4, 5), np.uint8))
    (tmp_path / "raw").write_bytes(bytes(20))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["exported_data"] = h5py.ExternalLink("other.h5", "exported_data")
    with pytest.raises(NormdetError, match="holds 0 arrays"):
        read_labels(path, 1000)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (4, 5), np.uint8, external=[(str(tmp_path / "raw"), 0, 20)])
    with pytest.raises(NormdetError, match="keeps its array in other files"):
        read_labels(path, 1000)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((4, 5), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "exported_data", (4, 5))
        file.create_virtual_dataset("a", layout)
    with pytest.raises(NormdetError, match="keeps its array in other files"):
        read_labels(path, 1000)


def test_a_chunk_may_not_be_larger_than_any_label_image(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (4, 5), np.uint8, chunks=(1 << 15, 1 << 14), maxshape=(None, None))
    with pytest.raises(NormdetError, match="is packed in chunks of"):
        read_labels(tmp_path / "a.h5", 1000)


@pytest.mark.slow
def test_an_export_becomes_a_data_set(tmp_path):
    labels = np.ones((1, 48, 64, 1), np.uint8)
    labels[0, 8:20, 8:20], labels[0, 30:40, 30:50] = 2, 2
    (tmp_path / "lab").mkdir()
    for name in "ab":
        pixels = np.full((48, 64), 90, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "lab" / f"{name}.png")
        write(tmp_path / "lab" / f"{name}_Simple Segmentation.h5", labels, "zyxc")
    argv = ["prepare", str(tmp_path / "lab"), "--out", str(tmp_path / "out"), "--val", "0"]
    assert main([*argv, "--background", "1"]) == 0
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert sorted(entry["area"] for entry in content["annotations"]) == [144, 144, 200, 200]
