"""Recognize the kind of a source, and read its stacks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from normdet.data import image_file as image_reader
from normdet.data.choice import DEFAULT, Choice
from normdet.data.records import MAX_BOX_FAULTS
from normdet.errors import NormdetError
from normdet.files.faults import Report, unreadable
from normdet.medical.prepare.annotated import coco_stacks, tool_stacks, voc_stacks
from normdet.medical.prepare.dicom import dicom_stacks
from normdet.medical.prepare.formats import FORMATS, Builder, Files, refuse
from normdet.medical.prepare.labelled import bowl_stacks, image_stacks, is_bowl
from normdet.medical.prepare.masks import Labels
from normdet.medical.prepare.stack import Stack
from normdet.medical.readers import dicom as dicom_reader
from normdet.medical.readers import nifti
from normdet.medical.readers.find import walk

KINDS = {
    "coco": "COCO JSON files and the images they name",
    "voc": "a Pascal VOC folder",
    **{form.name: form.text for form in FORMATS.values()},
    "masks": "ID/images/ and ID/masks/, a mask for each instance (Data Science Bowl)",
    "images": "images with label images",
    "nifti": "NIfTI volumes with label volumes",
    "dicom": "DICOM with DICOM-SEG or label images",
}
_LABELLED = ("images", "nifti", "dicom")
_ANNOTATED = ("coco", "voc", *FORMATS)
# The kinds that an option of `normdet prepare` is for; the others have an effect on every kind.
OPTIONS = {
    "images": ("coco", *FORMATS),
    "labels": _LABELLED,
    "instances": _LABELLED,
    "ignore": _LABELLED,
    "background": _LABELLED,
    "classes": (*_LABELLED, "masks"),
    "axis": ("nifti",),
    "neighbours": ("nifti", "dicom"),
    "channels": ("images", "masks", *_ANNOTATED),
    "planes": ("images", "masks", *_ANNOTATED),
    "max_box_faults": _ANNOTATED,
}
# A COCO file is recognized by its beginning and end, which name these lists.
_PROBE = 1 << 16


@dataclass(frozen=True)
class Request:
    """The user's settings for reading."""

    root: Path
    kind: str
    images: Path | None
    labels: Path | None
    rule: Labels
    patient: str | None
    axis: str
    max_pixels: int
    choice: Choice = DEFAULT
    max_box_faults: float = MAX_BOX_FAULTS


def detect(root: Path) -> str:
    """Recognize the kind of a source.

    Raises:
        NormdetError: nothing is recognized.
    """
    if not root.exists():
        raise NormdetError(f"{root} does not exist")
    if root.is_dir() and (root / "ImageSets" / "Main").is_dir():
        return "voc"
    files = Files(root)
    if coco_files(root, files):
        return "coco"
    forms = (name for name, form in FORMATS.items() if form.find(files))
    found = next(forms, None) or (_of_file(root) if root.is_file() else _of_folder(root))
    if found is None:
        refuse(root)
        raise NormdetError(
            f"{root} is no source that is recognized: name one with --kind ({', '.join(KINDS)})"
        )
    return found


def _of_file(path: Path) -> str | None:
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
    # A DICOM source may have image files as labels, and a volume may have them as previews, so
    # the rarer kind wins.
    order = ("dicom", "nifti", "masks", "images")
    return next((kind for kind in order if kind in kinds), None)


def coco_files(root: Path, files: Files | None = None) -> list[Path]:
    """The COCO files in a folder and in its `annotations`; without any, those in subfolders.

    A file given as the source is returned unchecked; its reader reports what is wrong with it.
    """
    if root.is_file():
        known = files and any(form.find(files) for form in FORMATS.values())
        return [root] if root.suffix.lower() == ".json" and not known else []
    near = sorted([*root.glob("*.json"), *(root / "annotations").glob("*.json")])
    found = [path for path in near if path.is_file() and _is_coco(path)]
    # Roboflow writes one into the folder of each split.
    found = found or [p for p in (files or Files(root)).ending(".json") if _is_coco(p)]
    # COCO's own folder holds captions, keypoints and other annotations of the same images.
    instances = [path for path in found if path.name.startswith("instances_")]
    return instances or found


def _is_coco(path: Path) -> bool:
    """Whether a file names the three lists, without reading a large one whole."""
    try:
        with open(path, "rb") as file:
            text = file.read(_PROBE)
            if file.seek(0, 2) > 2 * _PROBE:
                # Read only the beginning and the end of a large file; `images` usually comes first.
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


def stacks(request: Request, report: Report, notes: list[str]) -> Iterator[Stack]:
    """All stacks of a source.

    Args:
        request: what the user asked for.
        report: called with a sentence on each fault.
        notes: gets a sentence on each unusual reading that the user should know of.

    Raises:
        NormdetError: the source is not of the kind asked for.
    """
    root, patient, limit = request.root, request.patient, request.max_pixels
    if request.kind == "coco":
        files = coco_files(root)
        if not files:
            raise NormdetError(f"{root} holds no COCO file, at its top or in annotations/")
        folder = root.parent if root.is_file() else root
        return coco_stacks(
            files, request.images, folder, patient, report, notes, request.max_box_faults
        )
    listed = (root / "ImageSets" / "Main").is_dir()
    kind = "voc-xml" if request.kind == "voc" and not listed else request.kind
    if kind in FORMATS:
        form, files = FORMATS[kind], FORMATS[kind].find(Files(root))
        if not files:
            raise NormdetError(f"{root} holds no files of the kind {form.name}: {form.text}")
        builder = Builder(root, report, request.images, request.max_box_faults)
        return tool_stacks(form, files, builder, patient, report, notes)
    if not root.is_dir():
        raise NormdetError(f"{root} is one file: name the folder that holds its labels too")
    if request.kind == "voc":
        return voc_stacks(root, patient, report, notes, request.max_box_faults)
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
        notes,
    )
