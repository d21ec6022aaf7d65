"""NIfTI volumes, cut into slices along an anatomical axis."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from normdet.data.slices import Slice, Source, check_growth, check_size, native
from normdet.errors import NormdetError
from normdet.files.faults import Report, missing_extra

SUFFIXES = (".nii", ".nii.gz")
# The names of the axes of a volume turned to right, anterior, superior.
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
# The tolerance for rounded headers, in units of a voxel's shortest side. A label that is off by
# more is refused.
GRID_TOLERANCE = 0.1


def read(source: Source, *, axis: str, max_pixels: int, report: Report) -> Iterator[Slice]:
    """The slices of a volume: from right to left, back to front, or bottom to top."""
    (path,) = source.paths
    volume, spacing = load_volume(path, axis=axis, max_pixels=max_pixels)
    for index, pixels in enumerate(volume):
        yield Slice(pixels, f"{source.name}_{index:04d}", None, spacing, None, path, index)


def load_volume(
    path: Path, *, axis: str = "axial", max_pixels: int, labels: bool = False
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Load a volume as slices, turned to the closest anatomical axes however it is stored.

    Returns:
        `(N, H, W)` integers as stored, or float32 if the file has a scale; anterior (in axial
        slices) or superior (in others) is up. And the mm between rows, columns and slices.

    Raises:
        NormdetError: a file that is damaged, too large, or not three-dimensional.
    """
    image = _open(path)
    shape = _shape(image, path)
    to_ras = _to_ras(image.affine, path)
    count, *rest = sorted(range(3), key=lambda stored: to_ras[stored, 0] != AXES[axis])
    check_size(path, shape[rest[0]], shape[rest[1]], max_pixels, shape[count])
    check_growth(path, math.prod(shape) * image.get_data_dtype().itemsize, labels)
    try:
        array = _voxels(image, shape)
    except Exception as error:  # a damaged stream can raise any exception
        raise NormdetError(f"{path} is damaged or cut short: {type(error).__name__}") from error
    return _turned(array, image.affine, to_ras, AXES[axis], _unit(image))


def check_same_grid(label: Path, image: Path) -> None:
    """Refuse a label volume whose voxels are not those of its image. Reads headers alone.

    Both are compared after turning them to right, anterior, superior: the sizes must be equal, and
    every corner must agree within `GRID_TOLERANCE`.

    Raises:
        NormdetError: naming both files, and their sizes or the mm between their corners; or a
            header cannot be read.
    """
    (label_shape, label_affine, _), (shape, affine, mm) = map(_grid, (label, image))
    if label_shape != shape:
        has, wanted = ("x".join(map(str, size)) for size in (label_shape, shape))
        raise NormdetError(f"{label} has {has} voxels, its image {image} {wanted}")
    corners = np.array([*itertools.product(*((0, size - 1) for size in shape), (1,))]).T
    apart = mm * np.linalg.norm((label_affine - affine)[:3] @ corners, axis=0).max()
    allowed = mm * GRID_TOLERANCE * np.sqrt((affine[:3, :3] ** 2).sum(0)).min()
    if apart > allowed:
        raise NormdetError(
            f"{label} lies elsewhere than its image {image}: corners are {apart:.3g} mm apart, "
            f"and {allowed:.3g} are allowed: resample the label to the image's voxels"
        )


def _grid(path: Path) -> tuple[tuple[int, ...], np.ndarray, float]:
    """Sizes and affine of a volume turned to right, anterior, superior, and mm of its unit."""
    image = _open(path)
    from nibabel import orientations

    shape = _shape(image, path)
    to_ras = _to_ras(image.affine, path)
    turned = np.argsort(to_ras[:, 0])
    affine = image.affine @ orientations.inv_ornt_aff(to_ras, shape)
    return tuple(shape[stored] for stored in turned), affine, _unit(image)


def _shape(image: Any, path: Path) -> tuple[int, int, int]:
    shape = image.shape
    if len(shape) > 3 and set(shape[3:]) == {1}:
        shape = shape[:3]
    if len(shape) != 3:
        raise NormdetError(f"{path} has {len(shape)} dimensions {shape}: one volume has three")
    return shape


def _open(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise missing_extra("nibabel") from error
    try:
        return nibabel.load(path)
    except Exception as error:  # a damaged header can raise any exception
        raise NormdetError(f"{path} is not a NIfTI file that can be read") from error


def _voxels(image: Any, shape: tuple[int, ...]) -> np.ndarray:
    scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
    array = np.asarray(image.dataobj, np.float32) if scaled else image.dataobj.get_unscaled()
    if array.dtype.names or np.iscomplexobj(array):
        raise ValueError("colour or complex voxels")
    return native(np.asarray(array).reshape(shape))


def _unit(image: Any) -> float:
    """The mm in the header's unit of length; a header without a unit means mm."""
    metre, micron = 1, 3
    return {metre: 1e3, micron: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1.0)


def _to_ras(affine: np.ndarray, path: Path) -> np.ndarray:
    """The anatomical axis and sign of each stored axis: `(3, 2)`."""
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
    # to_ras[i, 0] is the anatomical axis of stored axis i.
    ras_sizes = np.empty(3)
    ras_sizes[to_ras[:, 0].astype(int)] = sizes
    across, up = (index for index in range(3) if index != axis)
    slices = array.transpose(axis, up, across)[:, ::-1]
    rows, columns, between = (float(ras_sizes[index]) for index in (up, across, axis))
    return slices, (rows, columns, between)
