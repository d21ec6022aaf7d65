"""Read label images from HDF5, which ilastik exports by default."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from normdet.data.slices import MAX_VOXELS_PER_PIXEL, check_size
from normdet.errors import NormdetError
from normdet.files.faults import missing_extra
from normdet.files.read import check_regular
from normdet.medical.prepare import hdf5

SUFFIXES = (".h5", ".hdf5")
_LARGEST = 4 << 30
_SECONDS = 300
# By the number of dimensions, where a file does not name its axes.
_AXES = {2: "yx", 3: "zyx", 4: "zyxc", 5: "tzyxc"}


def read_labels(path: Path, max_pixels: int) -> np.ndarray:
    """The labels `(H, W)`, or `(Z, H, W)` of a stack; a process of its own reads them.

    Raises:
        NormdetError: the file is damaged, has no or several arrays, refers to other files, or its
            array is no label image; or h5py is not installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise missing_extra("h5py")
    if check_regular(path) > _LARGEST:
        raise NormdetError(f"{path} is larger than {_LARGEST >> 30} GB: not read")
    head, body = _printed(path, max_pixels * MAX_VOXELS_PER_PIXEL)
    dtype, shape = np.dtype(head["dtype"]), head["shape"]
    axes = "".join(head["axes"] or _AXES.get(len(shape), ""))
    length = dict(zip(axes, shape, strict=False))
    known = len(length) == len(axes) == len(shape) and {"y", "x"} <= length.keys()
    alone = all(size == 1 for axis, size in length.items() if axis not in "zyx")
    if dtype.kind not in "iub" or not (known and alone):
        raise NormdetError(f"{path} is no label image: an array {shape} of {dtype}, axes {axes!r}")
    check_size(path, length["y"], length["x"], max_pixels, length.get("z", 1))
    kept = [axis for axis in axes if axis in "zyx"]
    labels = np.frombuffer(body, dtype).reshape([length[axis] for axis in kept])
    labels = labels.astype(np.uint8) if dtype.kind == "b" else labels
    return labels.transpose([kept.index(axis) for axis in "zyx" if axis in kept])


def _printed(path: Path, most: int) -> tuple[dict, bytes]:
    """What :mod:`.hdf5` prints of a file."""
    command = [sys.executable, hdf5.__file__, str(path.absolute()), str(most)]
    advice = "export it as tif or png (in ilastik, Choose Export Image Settings)"
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NormdetError(f"{path} took {_SECONDS} s to read: {advice}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = said[-1] if said and done.returncode == 2 else "is damaged: HDF5's library died of it"
        raise NormdetError(f"{path} {why}: {advice}")
    head, _, body = done.stdout.partition(b"\n")
    return json.loads(head), body
