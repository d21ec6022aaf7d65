"""Read COCO files and Pascal VOC folders through the readers that training uses."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from normdet.data.coco import load_coco
from normdet.data.records import MAX_BOX_FAULTS, Dataset
from normdet.data.slices import Slice, Source
from normdet.data.voc import load_voc, read_set
from normdet.errors import NormdetError
from normdet.files.faults import Report
from normdet.files.words import first_of
from normdet.medical.prepare.formats import Builder, Format
from normdet.medical.prepare.layout import patient_of, split_of
from normdet.medical.prepare.stack import Stack
from normdet.medical.readers.find import unique_name


def coco_stacks(
    files: list[Path],
    images: Path | None,
    root: Path,
    patient: str | None,
    report: Report,
    notes: list[str],
    max_box_faults: float = MAX_BOX_FAULTS,
) -> Iterator[Stack]:
    """The images of COCO files; files or folders named train, val or test are that split.

    If an image is named again, in the same file or another, the first entry counts.
    """
    taken: set[str] = set()
    owners: dict[str, Path] = {}
    for file in files:
        folder = images or _image_folder(file, root)
        dataset = load_coco(
            file, folder, report, roots=[file.parent, root], max_box_faults=max_box_faults
        )
        _tell(dataset, file, report, notes)
        records: list[dict] = []
        again: dict[Path, list[str]] = {}
        for record in dataset.records:
            real = os.path.realpath(record["file_name"])
            if real in owners:
                again.setdefault(owners[real], []).append(record["file_name"])
            else:
                owners[real] = file
                records.append(record)
        for owner, names in again.items():
            report(f"{file}: left out {len(names)} images that {owner} has: {first_of(names)}")
        dataset = replace(dataset, records=records)
        split = split_of(file.stem) or _split_of_folder(file, root)
        yield from _stacks(dataset, folder, split, patient, taken)


def tool_stacks(
    form: Format,
    files: list[Path],
    builder: Builder,
    patient: str | None,
    report: Report,
    notes: list[str],
) -> Iterator[Stack]:
    """The images of a labelling tool's files; folders, or the files' own names, tell splits."""
    for file in files:
        try:
            form.read(file, builder)
        except NormdetError as error:
            report(str(error))
            builder.drop_last()
        except Exception as error:  # a hostile or broken file can raise any exception
            report(f"{file} cannot be read as {form.text}: {type(error).__name__}")
            builder.drop_last()
    dataset = builder.dataset()
    _tell(dataset, builder.root, report, notes)
    folder = builder.root if builder.root.is_dir() else builder.root.parent
    taken: set[str] = set()
    named = {file: split_of(file.stem) for file in files}
    told = len({*filter(None, named.values())}) > 1  # one name alone may be a project's
    for record in dataset.records:
        one = replace(dataset, records=[record])
        split = _split_of_folder(Path(record["file_name"]), folder)
        if split is None and told:
            split = named.get(builder.sources[record["file_name"]])
        yield from _stacks(one, folder, split, patient, taken, prefixed=False)


def _tell(dataset: Dataset, source: Path, report: Report, notes: list[str]) -> None:
    """Report each omitted box as a fault, and each unusual reading as a note."""
    for phrase in dataset.dropped:
        report(f"{source}: left out {phrase}")
    notes += dataset.notes


def _split_of_folder(path: Path, root: Path) -> str | None:
    """The split that one of the folders between `root` and a file names: `valid` is val."""
    if not path.is_relative_to(root):
        return None
    named = [split_of(part) for part in path.relative_to(root).parts[:-1]]
    return next(filter(None, named), None)


def voc_stacks(
    root: Path,
    patient: str | None,
    report: Report,
    notes: list[str],
    max_box_faults: float = MAX_BOX_FAULTS,
) -> Iterator[Stack]:
    """The images of the sets train, val, test and trainval; of all sets if there are none of these.

    An image is taken once, first by a set whose name tells a split. Images of trainval that are not
    in train (or val) form the missing split.
    """
    sets = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt"))
    chosen = [name for name in ("train", "val", "test", "trainval") if name in sets] or sets
    if not chosen:
        raise NormdetError(f"{root} has no image set in ImageSets/Main")
    lacking = {"train", "val"} - {*chosen}
    taken: set[str] = set()
    owners: dict[str, str | None] = {}
    for name in sorted(chosen, key=lambda name: split_of(name) is None):
        stems, split = read_set(root, name), split_of(name)
        if moved := [stem for stem in stems if split and owners.get(stem, split) != split]:
            report(
                f"{root}: left out of {name} {len(moved)} images that another split has: "
                f"{first_of(moved)}"
            )
        if set(stems) <= owners.keys():
            continue
        if name == "trainval" and len(lacking) == 1:
            (split,) = lacking
        dataset = load_voc(root, name, report, without=owners, max_box_faults=max_box_faults)
        _tell(dataset, root, report, notes)
        owners = dict.fromkeys(stems, split) | owners
        yield from _stacks(dataset, root / "JPEGImages", split, patient, taken)


def _image_folder(file: Path, root: Path) -> Path:
    """The likely folder of a COCO file's images: one named after it, or `images`."""
    split = file.stem.removeprefix("instances_")
    above = [file.parent.parent] if file.parent.name == "annotations" else []
    for place in (file.parent, root, *above):
        for name in (split, f"images/{split}", "images", "data"):
            if (place / name).is_dir():
                return place / name
    return file.parent


def _stacks(
    dataset: Dataset,
    folder: Path,
    split: str | None,
    patient: str | None,
    taken: set[str],
    prefixed: bool = True,
) -> Iterator[Stack]:
    for record in dataset.records:
        path = Path(record["file_name"])
        # A file that was found by searching may lie outside the folder.
        below = Path(path.relative_to(folder) if path.is_relative_to(folder) else path.name)
        first, *rest = below.parts
        first = f"{split}_{first}" if split and prefixed else first
        name = unique_name(folder.joinpath(first, *rest), folder, taken)
        key = patient_of(below, patient)
        source = Source("image", (path,), name)
        objects = partial(_objects, record, dataset.classes)
        classes = tuple(dataset.classes)
        given = hashlib.blake2b(repr((record, classes)).encode()).hexdigest()
        yield Stack(source, objects, key or str(path), split, key is not None, classes, given=given)


def _objects(record: dict, classes: list[str], item: Slice) -> list[dict]:
    height, width = item.pixels.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise NormdetError(
            f"{item.source} has {width}x{height} pixels, its annotations are for "
            f"{record['width']}x{record['height']}"
        )
    objects = [_object(entry, classes, height, width) for entry in record["annotations"]]
    if "ignore" in record:
        counts = record["ignore"]["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        objects.append({"ignored": {"size": record["ignore"]["size"], "counts": text}})
    return objects


def _object(entry: dict, classes: list[str], height: int, width: int) -> dict:
    x0, y0, x1, y1 = BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    result = {
        "category": classes[entry["category_id"]],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": entry.get("iscrowd", 0),
    }
    if mask := entry.get("segmentation"):
        if isinstance(mask, dict):
            counts = mask["counts"]
            rle = mask
            text = counts.decode() if isinstance(counts, bytes) else counts
            result["segmentation"] = {"size": mask["size"], "counts": text}
        else:
            rle = mask_util.merge(mask_util.frPyObjects(mask, height, width))
            result["segmentation"] = mask
        result["area"] = int(mask_util.area(rle))
    return result
