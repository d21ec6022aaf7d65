"""Find the images under a path."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from normdet.data import image_file as image
from normdet.data.slices import Source
from normdet.errors import NormdetError
from normdet.files.anonymous import Numbers
from normdet.files.faults import Report, stop, unreadable
from normdet.medical.readers import dicom, nifti


def find_sources(
    paths: str | Path | Iterable[str | Path], *, report: Report = stop
) -> list[Source]:
    """Every image file, NIfTI volume and DICOM series, in the order of their paths.

    DICOM files are grouped by series, wherever they are. DICOM files without an image (reports,
    plans), segmentations, hidden files and files of other kinds are ignored. Links that lead out
    of the folder are not followed.

    Args:
        paths: a file, a folder with its subfolders, or several of both.
        report: called with a sentence on a file that cannot be read or leads outside.

    Raises:
        NormdetError: a path does not exist, or nothing is found.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    sources: list[Source] = []
    series: dict[str, list[Path]] = {}
    names: set[str] = set()
    for path, root in each_file(given, report):
        lower = path.name.lower()
        if lower.endswith(nifti.SUFFIXES):
            sources.append(Source("nifti", (path,), unique_name(path, root, names)))
        elif lower.endswith(image.SUFFIXES):
            sources.append(Source("image", (path,), unique_name(path, root, names)))
        else:
            try:
                header = dicom.read_header(path) if dicom.is_dicom(path) else None
            except NormdetError as error:
                report(str(error))
                continue
            if header and header.has_image and header.modality not in ("SEG", "RTDOSE"):
                series.setdefault(header.series or str(path), []).append(path)
    for number, files in enumerate(series.values(), start=1):
        sources.append(Source("dicom", tuple(files), f"series{number:04d}"))
    if not sources:
        shown = ", ".join(map(str, given[:3]))
        raise NormdetError(f"{shown} holds no image, NIfTI volume or DICOM file that can be read")
    return sources


def each_file(given: Iterable[Path], report: Report) -> Iterator[tuple[Path, Path]]:
    """Every file once, with the folder that its name starts from; folders may be nested."""
    seen: set[str] = set()
    for path, root in _named(given, report):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield path, root


def _named(given: Iterable[Path], report: Report) -> Iterator[tuple[Path, Path]]:
    for path in given:
        if path.is_file():
            yield path, path.parent
        elif path.is_dir():
            for file in walk(path, report):
                yield file, path
        else:
            raise NormdetError(f"{path} does not exist")


def walk(folder: Path, report: Report = stop) -> Iterator[Path]:
    """The files below `folder`, sorted.

    Links that lead out of it and folders that cannot be read are reported and left out.
    """
    root = os.path.realpath(folder)

    def unread(error: OSError) -> None:
        report(str(unreadable(error.filename, error)))

    for place, folders, files in os.walk(folder, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            if name.startswith("."):
                continue
            real = os.path.realpath(path)
            if os.path.commonpath([root, real]) != root:
                report(f"{path} is a link that leads out of {folder}")
            elif os.path.isfile(real):
                yield path
        for name in folders:
            link = Path(place, name)
            if link.is_symlink() and os.path.commonpath([root, os.path.realpath(link)]) != root:
                report(f"{link} is a link that leads out of {folder}")


def stem(path: Path) -> str:
    """The file's name without `.png`, `.nii.gz`, ...; an ending that is a number stays."""
    if path.name.lower().endswith(".nii.gz"):
        return path.name[: -len(".nii.gz")]
    # DICOM files are often named by their UID alone, such as 1.2.840.1.
    return path.name if path.suffix[1:].isdigit() else path.stem


def unique_name(path: Path, root: Path, taken: set[str]) -> str:
    """The path below `root` as a file name that is not `taken`; letters of any script stay."""
    parts = [*path.relative_to(root).parent.parts, stem(path)]
    name = re.sub(r"[^\w.-]+", "_", "__".join(parts)).strip(".") or "image"
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    unique = next(text for text in itertools.chain([name], numbered) if text not in taken)
    taken.add(unique)
    return unique


def numbered(source: Source, numbers: Numbers) -> Source:
    """The source with a number for its name; names of DICOM series are numbers already."""
    if source.kind == "dicom":
        return source
    return replace(source, name=numbers.image_name(source.paths[0]))
