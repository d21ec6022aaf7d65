"""Turn label images and masks into COCO objects."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pycocotools.mask as mask_util

from normdet.errors import NormdetError
from normdet.files.faults import missing_extra

# The category of an object whose source names none.
OBJECT = "object"


@dataclass(frozen=True)
class Labels:
    """How the values of a source's label images are read.

    Attributes:
        instances: `"values"` (each value is an instance), `"components"` (each value is a class,
            each connected piece of it an instance) or `"auto"`, which :meth:`settle` decides.
        classes: names; one for all, or in components the name of value 1, of value 2, ...
        numbered: whether classes without a name are named by their values.
        ignore: values of pixels that are neither object nor background; None for VOC's border,
            if the label images have one.
        background: values that mean no object, besides 0.

    Raises:
        NormdetError: several classes although every value is to be an instance.
    """

    instances: str = "auto"
    classes: tuple[str, ...] = ()
    numbered: bool = True
    ignore: tuple[int, ...] | None = None
    background: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.instances == "values" and len(self.classes) > 1:
            raise NormdetError(
                "--classes has several names for values that --instances values makes instances of "
                "one class: name that one, or let the values be classes by --instances components"
            )

    def settle(self, files: Iterable[np.ndarray]) -> "Labels":
        """Decide on one rule for a whole source, so that all files are read the same way.

        Several classes are names of values. Otherwise values are instances if any file has two, and
        classes if no file has.

        Args:
            files: the values other than 0 of each label file; not all need be read.
        """
        if self.instances == "values":
            return self
        if self.classes and (len(self.classes) > 1 or self.instances == "components"):
            return replace(self, instances="components")
        met: set[int] = set()
        for values in files:
            values = values[~np.isin(values, (*(self.ignore or ()), *self.background))]
            met.update(values.tolist())
            if len(values) > 1 and self.instances == "auto":
                return replace(self, instances="values")
            if len(met) > 1 and self.instances == "components":
                break
        return replace(self, instances="components", numbered=len(met) > 1)

    def __str__(self) -> str:
        text = self._read()
        for values, means in ((self.background, "background"), (self.ignore, "ignored (--ignore)")):
            text += f"; {', '.join(map(str, values))} is {means}" if values else ""
        return text

    def _read(self) -> str:
        if self.instances == "values":
            return "each value is an instance (--instances components: a class)"
        names = ", ".join(f"{value} {name}" for value, name in enumerate(self.classes, start=1))
        of = names if len(self.classes) > 1 else "a class" if self.numbered else "one class"
        return f"each connected piece of a value is an instance; values are {of}"

    def name(self, value: int) -> str:
        """The class of a value, in components.

        Raises:
            NormdetError: a value that the classes do not name.
        """
        if not self.classes:
            return f"label {value}" if self.numbered else OBJECT
        if len(self.classes) == 1:
            return self.classes[0]
        if not 0 < value <= len(self.classes):
            raise NormdetError(f"label value {value} has no name among the --classes")
        return self.classes[value - 1]


def label_values(labels: np.ndarray) -> np.ndarray:
    """The values other than 0, sorted."""
    values = np.unique(labels)
    return values[values != 0]


def as_labels(pixels: np.ndarray, where: str) -> np.ndarray:
    """Label values `(H, W)` of an image: colours become numbers, whole floats integers.

    Raises:
        NormdetError: values are not whole, or negative.
    """
    if pixels.ndim == 3:
        grey = (pixels == pixels[..., :1]).all()
        pixels = pixels[..., 0] if grey else pixels.astype(np.int64) @ [65536, 256, 1]
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and (pixels == np.round(pixels)).all()):
            raise NormdetError(f"{where} is no label image: it holds values that are not whole")
        pixels = pixels.astype(np.int64)
    if pixels.size and np.issubdtype(pixels.dtype, np.signedinteger) and pixels.min() < 0:
        raise NormdetError(f"{where} is no label image: it holds negative values")
    return pixels


def objects_of(labels: np.ndarray, rule: Labels) -> list[dict]:
    """The objects in a label image, and last `{"ignored": RLE}` if it has ignored pixels.

    Args:
        labels: `(H, W)`, 0 is background.
        rule: the settled rule for reading it.
    """
    if rule.background:
        labels = np.where(np.isin(labels, rule.background), 0, labels)
    ignored = np.isin(labels, rule.ignore) if rule.ignore else np.zeros(0, bool)
    if ignored.any():
        rle = encode_masks([ignored])[0]
        text = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        return [*_objects_of(np.where(ignored, 0, labels), rule), {"ignored": text}]
    return _objects_of(labels, rule)


def _objects_of(labels: np.ndarray, rule: Labels) -> list[dict]:
    if rule.instances == "values":
        name = rule.classes[0] if rule.classes else OBJECT
        return [coco_object(name, rle) for rle in encode_labels(labels).values()]
    objects = []
    for value in label_values(labels).tolist():
        name, pieces = rule.name(value), components(labels == value)
        objects += [coco_object(name, rle) for rle in encode_labels(pieces).values()]
    return objects


def components(mask: np.ndarray) -> np.ndarray:
    """Connected pieces of `(H, W)` bool, numbered from 1; pixels that touch at a corner connect."""
    try:
        from skimage.measure import label
    except ImportError as error:
        raise missing_extra("scikit-image") from error
    return label(mask, connectivity=2)


def encode_labels(labels: np.ndarray) -> dict[int, dict]:
    """The RLE of every value other than 0, all in one pass over `(H, W)`."""
    height, width = labels.shape
    flat = labels.ravel(order="F")
    if not flat.size:
        return {}
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    firsts = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    result = {}
    for runs in np.split(order, firsts):
        value = int(values[runs[0]])
        if value:
            edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
            counts = np.diff(edges, prepend=0)
            if edges[-1] < flat.size:
                counts = np.append(counts, flat.size - edges[-1])
            rle = {"counts": counts.tolist(), "size": [height, width]}
            result[value] = mask_util.frPyObjects(rle, height, width)
    return result


def encode_masks(masks: Iterable[np.ndarray]) -> list[dict]:
    """An RLE for each `(H, W)` bool."""
    return [mask_util.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def coco_object(category: str, rle: dict) -> dict:
    """An object with a mask, as a COCO annotation without ids."""
    return {
        "category": category,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
    }
