"""YOLO's text files: boxes by centre and size, or polygons, as shares of the image."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, same_stem, text_of

# The largest list of names that is read; PyYAML reads about 100 kB per second.
_LARGEST_YAML = 1 << 18
# A box may leave its image, but not be so far from it.
_FARTHEST = 2
_LINE = re.compile(r"^\s*\d+(\.0*)?(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", re.I)
# The files with the names of classes, one per line.
_LISTS = ("classes.txt", "obj.names", "predefined_classes.txt", "labels.txt", "_darknet.labels")


def find(files: Files) -> list[Path]:
    """Text files named after images, with five or more numbers per line."""
    found = [path for path in files.ending(".txt") if _is_labels(path, files)]
    # An empty file means an image without objects, but does not show that this is YOLO.
    return found if any(files.beginning(path).strip() for path in found) else []


def _is_labels(path: Path, files: Files) -> bool:
    if path.name in _LISTS or not _image_of(path, files):
        return False
    lines = files.beginning(path).splitlines()
    # The probe may cut off the last line.
    return all(_LINE.match(line) for line in lines[:20] if line.strip())


def _image_of(path: Path, files: Files) -> bool:
    """Whether an image of its name is beside a label, or in the folder that mirrors its own."""
    stem = str(path.with_suffix(""))
    mirrored = re.sub(r"(^|/)labels(?=/|$)", r"\1images", str(path.parent.as_posix()))
    return stem in files.images or str(Path(mirrored, path.stem)) in files.images


def read(file: Path, out: Builder) -> None:
    """One image's objects."""
    names = _names(out)
    mirrored = Path(re.sub(r"(^|/)labels(?=/|$)", r"\1images", file.parent.as_posix()))
    beside = (mirrored / same_stem(file)) if mirrored != file.parent else Path(same_stem(file))
    image = out.image(str(beside), file)
    if image is None:
        return
    height, width = image["height"], image["width"]
    for place, line in enumerate(text_of(file).splitlines(), start=1):
        numbers = line.split()
        if not numbers:
            continue
        try:
            number, *shares = int(float(numbers[0])), *map(float, numbers[1:])
        except (ValueError, OverflowError) as error:
            raise NormdetError(f"{file} has something that is no number in line {place}") from error
        if max(map(abs, shares[:4]), default=0) > _FARTHEST:
            raise NormdetError(
                f"{file} has the coordinate {max(shares[:4]):g}: YOLO's are shares of the image, "
                "from 0 to 1"
            )
        if names and number >= len(names):
            raise NormdetError(f"{file} has the class {number}, and {len(names)} are named")
        label = names[number] if names else f"class {number}"
        # A fifth is a prediction's confidence; of a pose, points follow the box.
        if len(shares) in (4, 5) or ((points := out.yolo_points) and len(shares) == 4 + points):
            x, y, w, h = shares[:4]
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            out.add(image, label, box=box)
        elif len(shares) >= 6 and len(shares) % 2 == 0:
            line = [share * (height if place % 2 else width) for place, share in enumerate(shares)]
            out.add(image, label, polygons=[line])
        else:
            raise NormdetError(f"{file} has a line of {len(numbers)} numbers: boxes have five")


def _names(out: Builder) -> list[str]:
    """The classes that a source declares, in order; read once."""
    if not hasattr(out, "yolo_names"):
        files = Files(out.root if out.root.is_dir() else out.root.parent)
        described = list(_described(files))
        out.yolo_names = _declared(files, described)
        out.yolo_points = next(filter(None, map(_points, described)), 0)
        if out.yolo_points:
            out.leave_out("kinds of keypoints: boxes are taken")
        out.declare(out.yolo_names)
    return out.yolo_names


def _described(files: Files) -> Iterator[dict]:
    """What the YAML files of a source hold."""
    for path in files.ending(".yaml", ".yml"):
        try:
            content = yaml.safe_load(text_of(path, _LARGEST_YAML))
        except (yaml.YAMLError, NormdetError, RecursionError, ValueError):
            continue
        if isinstance(content, dict):
            yield content


def _points(content: dict) -> int:
    """How many numbers the keypoints of a pose have."""
    shape = content.get("kpt_shape")
    plain = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
    return shape[0] * shape[1] if plain else 0


def _declared(files: Files, described: Sequence[dict]) -> list[str]:
    for content in described:
        names = content.get("names")
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=int)]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    for path in files.all:
        if path.name == "notes.json":  # Label Studio's
            content = read_json(path)
            try:
                names = [str(entry["name"]) for entry in content.get("categories", [])]
            except (AttributeError, KeyError, TypeError) as error:
                raise NormdetError(f"{path} is not Label Studio's list of classes") from error
            if names:
                return names
    for path in files.all:
        if path.name in _LISTS:
            return [line.strip() for line in text_of(path).splitlines() if line.strip()]
    return []


FORMAT = Format("yolo", "YOLO's text files, boxes or polygons", find, read)
