"""NIfTI volumes, cut into slices along an anatomical axis."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.readers.base import Report, Slice, Source, check_size, missing_extra, native
from normdet.errors import NormdetError

SUFFIXES = (".nii", ".nii.gz")
# Names of the axes once the volume lies as right, anterior, superior.
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


def read(source: Source, *, axis: str, max_pixels: int, report: Report) -> Iterator[Slice]:
    """The slices of a volume: from right to left, back to front, or bottom to top."""
    (path,) = source.paths
    volume, spacing = load_volume(path, axis=axis, max_pixels=max_pixels)
    for index, pixels in enumerate(volume):
        yield Slice(pixels, f"{source.name}_{index:04d}", None, spacing, None, path, index)


def load_volume(
    path: Path, *, axis: str = "axial", max_pixels: int
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A volume as slices, whatever way it is stored: turned to the closest anatomical axes.

    Returns:
        `(N, H, W)` integers as stored, or float32 where the file has a scale; anterior (in axial
        slices) or superior (in others) is up. And the mm from row to row, column to column, slice
        to slice.

    Raises:
        NormdetError: a file that is damaged, too large, or not three-dimensional.
    """
    image = _open(path)
    shape = image.shape
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if len(shape) != 3:
        raise NormdetError(f"{path} has {len(shape)} dimensions {shape}: one volume has three")
    to_ras = _to_ras(image.affine, path)
    count, *rest = sorted(range(3), key=lambda stored: to_ras[stored, 0] != AXES[axis])
    check_size(path, shape[rest[0]], shape[rest[1]], max_pixels, shape[count])
    try:
        array = _voxels(image, shape)
    except Exception as error:  # a damaged stream can raise nearly anything
        raise NormdetError(f"{path} is damaged or cut short: {type(error).__name__}") from error
    return _turned(array, image.affine, to_ras, AXES[axis], _unit(image))


def _open(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise missing_extra("nibabel") from error
    try:
        return nibabel.load(path)
    except Exception as error:  # a header can hold anything
        raise NormdetError(f"{path} is not a NIfTI file that can be read") from error


def _voxels(image: Any, shape: tuple[int, ...]) -> np.ndarray:
    scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
    array = np.asarray(image.dataobj, np.float32) if scaled else image.dataobj.get_unscaled()
    if array.dtype.names or np.iscomplexobj(array):
        raise ValueError("colour or complex voxels")
    return native(np.asarray(array).reshape(shape))


def _unit(image: Any) -> float:
    """mm of the header's unit of length; a header that names none means mm."""
    metre, micron = 1, 3
    return {metre: 1e3, micron: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1.0)


def _to_ras(affine: np.ndarray, path: Path) -> np.ndarray:
    """Of each stored axis the anatomical one and its sign: `(3, 2)`."""
    from nibabel import orientations

    orientation = orientations.io_orientation(affine) if np.isfinite(affine).all() else affine
    if not np.isfinite(orientation).all() or len(set(orientation[:3, 0])) != 3:
        raise NormdetError(f"{path} does not say how its axes lie: its affine is degenerate")
    return orientation


def _turned(
    array: np.ndarray, affine: np.ndarray, to_ras: np.ndarray, axis: int, unit: float
) -> tuple[np.ndarray, tuple[float, float, float]]:
    from nibabel import orientations

    array = orientations.apply_orientation(array, to_ras)
    sizes = unit * np.sqrt((affine[:3, :3] ** 2).sum(0))
    # Of stored axis i the anatomical one is to_ras[i, 0].
    ras_sizes = np.empty(3)
    ras_sizes[to_ras[:, 0].astype(int)] = sizes
    across, up = (index for index in range(3) if index != axis)
    slices = array.transpose(axis, up, across)[:, ::-1]
    rows, columns, between = (float(ras_sizes[index]) for index in (up, across, axis))
    return slices, (rows, columns, between)
