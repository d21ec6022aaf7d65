"""What kind of source a path holds, and its stacks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from normdet.data import image_file as image_reader
from normdet.data.choice import DEFAULT, Choice
from normdet.errors import NormdetError
from normdet.files.faults import Report, unreadable
from normdet.medical.prepare.annotated import coco_stacks, voc_stacks
from normdet.medical.prepare.dicom import dicom_stacks
from normdet.medical.prepare.labelled import bowl_stacks, image_stacks, is_bowl
from normdet.medical.prepare.masks import Labels
from normdet.medical.prepare.stack import Stack
from normdet.medical.readers import dicom as dicom_reader
from normdet.medical.readers import nifti
from normdet.medical.readers.find import walk

KINDS = {
    "coco": "COCO JSON files and the images they name",
    "voc": "a Pascal VOC folder",
    "masks": "ID/images/ and ID/masks/, a mask for each instance (Data Science Bowl)",
    "images": "images with label images",
    "nifti": "NIfTI volumes with label volumes",
    "dicom": "DICOM with DICOM-SEG or label images",
}
# A COCO file is recognized by its beginning and end, which name these lists.
_PROBE = 1 << 16


@dataclass(frozen=True)
class Request:
    """What the user asked for, as far as reading goes."""

    root: Path
    kind: str
    images: Path | None
    labels: Path | None
    rule: Labels
    patient: str | None
    axis: str
    max_pixels: int
    choice: Choice = DEFAULT


def detect(root: Path) -> str:
    """The kind of a source.

    Raises:
        NormdetError: where nothing is recognized.
    """
    if not root.exists():
        raise NormdetError(f"{root} does not exist")
    if root.is_file():
        found = _of_file(root)
    elif (root / "ImageSets" / "Main").is_dir():
        found = "voc"
    elif coco_files(root):
        found = "coco"
    else:
        found = _of_folder(root)
    if found is None:
        raise NormdetError(
            f"{root} is no source that is recognized: name one with --kind ({', '.join(KINDS)})"
        )
    return found


def _of_file(path: Path) -> str | None:
    if path.suffix.lower() == ".json":
        return "coco"
    if path.name.lower().endswith(nifti.SUFFIXES):
        return "nifti"
    if dicom_reader.is_dicom(path):
        return "dicom"
    return "images" if path.name.lower().endswith(image_reader.SUFFIXES) else None


def _of_folder(root: Path) -> str | None:
    kinds: set[str] = set()
    images: dict[Path, list[Path]] = {}
    for path in walk(root, report=lambda sentence: None):
        try:
            kind = _of_file(path)
        except NormdetError:  # named when the source is read
            continue
        if kind:
            kinds.add(kind)
        if kind == "images" and path.parent.name == "images":
            images.setdefault(path.parent, []).append(path)
    if is_bowl(images):
        kinds.add("masks")
    # Labels of DICOM can be images, and images beside volumes can be previews: the rarer kind wins.
    order = ("dicom", "nifti", "masks", "images")
    return next((kind for kind in order if kind in kinds), None)


def coco_files(root: Path) -> list[Path]:
    """The COCO files of a folder: its own and those in `annotations`."""
    if root.is_file():
        return [root]
    files = sorted([*root.glob("*.json"), *(root / "annotations").glob("*.json")])
    return [path for path in files if path.is_file() and _is_coco(path)]


def _is_coco(path: Path) -> bool:
    """Whether a file names the three lists, without reading a large one whole."""
    try:
        with open(path, "rb") as file:
            text = file.read(_PROBE)
            if file.seek(0, 2) > 2 * _PROBE:
                # Lists in the middle of a large file are not seen, but those of images come first.
                return b'"images"' in text or b'"annotations"' in text
            file.seek(0)
            text = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content)


def stacks(request: Request, report: Report) -> Iterator[Stack]:
    """All stacks of a source.

    Raises:
        NormdetError: for a source that is not of its kind.
    """
    root, patient, limit = request.root, request.patient, request.max_pixels
    if request.kind == "coco":
        files = coco_files(root)
        if not files:
            raise NormdetError(f"{root} holds no COCO file, at its top or in annotations/")
        folder = root.parent if root.is_file() else root
        return coco_stacks(files, request.images, folder, patient, report)
    if not root.is_dir():
        raise NormdetError(f"{root} is one file: name the folder that holds its labels too")
    if request.kind == "voc":
        return voc_stacks(root, patient, report)
    if request.kind == "masks":
        return bowl_stacks(root, request.rule, patient, limit, report)
    if request.kind == "dicom":
        return dicom_stacks(root, request.labels, request.rule, patient, limit, report)
    kind = {"images": "image", "nifti": "nifti"}[request.kind]
    return image_stacks(
        root,
        request.labels,
        kind,
        request.rule,
        patient,
        request.axis,
        limit,
        report,
        request.choice,
    )
