"""Images of any kind as slices: PNG, JPEG, BMP, TIFF; DICOM files and series; NIfTI volumes.

::

    for source in find_sources("folder"):
        for item in read_slices(source):
            grey = apply_window(item.pixels, ...)     # normdet.data.window

Reading keeps the file's precision; a window is applied by the caller.
"""

from collections.abc import Iterator
from pathlib import Path

from normdet.data import image_file as image
from normdet.data.choice import DEFAULT, Choice
from normdet.data.slices import MAX_PIXELS, Slice, Source
from normdet.errors import NormdetError
from normdet.files.faults import Report, stop
from normdet.medical.readers import dicom, nifti
from normdet.medical.readers.find import find_sources
from normdet.medical.readers.neighbours import with_neighbours

__all__ = ["MAX_PIXELS", "Report", "Slice", "Source", "find_sources", "read_slices", "stop"]


def read_slices(
    source: Source | str | Path,
    *,
    axis: str = "axial",
    neighbours: int = 0,
    choice: Choice = DEFAULT,
    max_pixels: int = MAX_PIXELS,
    report: Report = stop,
) -> Iterator[Slice]:
    """Read the slices of a source, or of all sources under a path.

    Args:
        source: of :func:`find_sources`, or a file or a folder.
        axis: of a volume: `"axial"`, `"coronal"` or `"sagittal"`.
        neighbours: if not 0, each grey slice of a volume, series or stack becomes `(H, W, 3)`: the
            slice this many before, itself, and the slice this many after.
        choice: of channels and planes, if an image file has several.
        max_pixels: the largest image that is read.
        report: called with a sentence on every slice or file that cannot be read and every gap in
            a series. If it returns, reading goes on without that slice or file.

    Raises:
        NormdetError: at the first fault, unless `report` is given.
    """
    if axis not in nifti.AXES:
        raise NormdetError(f"axis {axis!r}: one of {', '.join(nifti.AXES)}")
    if neighbours < 0:
        raise NormdetError(f"neighbours {neighbours}: 0 for none, or a distance in slices")
    sources = [source] if isinstance(source, Source) else find_sources(source, report=report)
    for one in sources:
        try:
            slices = _read(one, axis, choice, max_pixels, report)
            yield from with_neighbours(slices, neighbours) if neighbours else slices
        except NormdetError as error:
            report(str(error))


def _read(
    source: Source, axis: str, choice: Choice, max_pixels: int, report: Report
) -> Iterator[Slice]:
    if source.kind == "nifti":
        return nifti.read(source, axis=axis, max_pixels=max_pixels, report=report)
    if source.kind == "image":
        return image.read(source, max_pixels=max_pixels, report=report, choice=choice)
    return dicom.read(source, max_pixels=max_pixels, report=report)
