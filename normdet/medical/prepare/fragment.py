"""Write the config that fits the data, for `normdet train`."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from normdet.config import merged_config
from normdet.weights.facts import IMAGENET_STD

# For a detector of stride 4 the median object should be about this large, and images no longer
# than this.
_OBJECT, _LONGEST = 32, 1600
_LEVELS = 5


def write_configs(folder: Path, fingerprint: Mapping) -> None:
    """Write `dataset.yaml`, a base for any config, and `train.yaml`, which uses it.

    Its other base, `detector.yaml`, is a copy. So the folder can be moved to a machine where
    normdet has another path or version.

    Args:
        folder: where they are written.
        fingerprint: of the data set.
    """
    (folder / "dataset.yaml").write_text(_dataset(fingerprint), encoding="utf-8")
    detector = merged_config("medical/Base-R_50-FPN.yaml")
    (folder / "detector.yaml").write_text(detector, encoding="utf-8")
    scaled = [round(value / IMAGENET_STD, 4) for value in fingerprint["pixel_std"]]
    text = (
        "# Mask R-CNN R50-FPN with GN on the data beside this file; --norm takes another norm.\n"
        '_BASE_:\n  - "detector.yaml"\n  - "dataset.yaml"\n'
        "MODEL:\n  # Its weights were trained with PIXEL_STD 1: the data are as varied to it as\n"
        f"  # ImageNet is.\n  PIXEL_STD: {scaled}\n"
    )
    (folder / "train.yaml").write_text(text, encoding="utf-8")


def anchor_sizes(sizes: Mapping[str, float], scale: float) -> list[int]:
    """Five sizes, each double the one before; the first is near the smallest common object."""
    smallest = max(sizes.get("5%", 32) * scale, 1)
    first = int(2 ** np.clip(round(np.log2(smallest)), 3, 5))
    return [first * 2**level for level in range(_LEVELS)]


def scale_of(fingerprint: Mapping) -> float:
    """The factor to enlarge images by, up to four times for small objects."""
    median = fingerprint["object_size"].get("median", _OBJECT)
    sizes = fingerprint["image_size"]
    longest = max(sizes["width"]["median"], sizes["height"]["median"])
    wanted = float(np.clip(_OBJECT / max(median, 1), 1, 4))
    return min(round(wanted * 2) / 2, _LONGEST / longest)


def _dataset(fingerprint: Mapping) -> str:
    scale = scale_of(fingerprint)
    sizes, objects = fingerprint["image_size"], fingerprint["object_size"]
    short = min(sizes["width"]["median"], sizes["height"]["median"])
    middle = max(32, round(short * scale / 32) * 32)
    near = sorted({max(32, middle - 32), middle, middle + 32})
    most = fingerprint["objects_per_image"].get("max", 0)
    detections = int(max(100, np.ceil(1.5 * most / 100) * 100))
    mean, std = fingerprint["pixel_mean"], fingerprint["pixel_std"]
    classes = len(fingerprint["classes"])
    splits = {name: f"coco:{name}.json:images" for name in fingerprint["images"]}
    tests = [splits[name] for name in ("val", "test") if name in splits][:1]
    anchors = ", ".join(f"[{size}]" for size in anchor_sizes(objects, scale))
    lines = [
        "# What the data ask of a detector; written by normdet prepare, see fingerprint.json.",
        "MODEL:",
        "  # Of the training images as written, BGR. Weights of PIXEL_STD 1, as detectron2's MSRA",
        "  # and GN ones are, take these over 57, as train.yaml has them.",
        f"  PIXEL_MEAN: {mean}",
        f"  PIXEL_STD: {std}",
        f"  MASK_ON: {fingerprint['masks']}",
        "  ANCHOR_GENERATOR:",
        f"    # Objects measure {objects.get('5%', 0):.0f} to {objects.get('95%', 0):.0f} pixels, "
        f"enlarged {scale:.2g} times.",
        f"    SIZES: [{anchors}]",
        "  ROI_HEADS:",
        f"    NUM_CLASSES: {classes}",
        "  RETINANET:",
        f"    NUM_CLASSES: {classes}",
        "DATASETS:",
        "  # The folder of this file.",
        '  ROOT: "./"',
        "  # By this, not to be changed, MODEL.PIXEL_STD is checked to suit the weights.",
        f"  PIXEL_STD: {std}",
        f"  TRAIN: [{_quoted(splits['train'])}]",
        f"  TEST: [{', '.join(map(_quoted, tests))}]",
        "INPUT:",
        "  MASK_FORMAT: " + _quoted("bitmask" if fingerprint["rle"] else "polygon"),
        f"  MIN_SIZE_TRAIN: {near}",
        f"  MIN_SIZE_TEST: {middle}",
        f"  MAX_SIZE_TRAIN: {_LONGEST}",
        f"  MAX_SIZE_TEST: {_LONGEST}",
        "TEST:",
        f"  # The fullest image holds {most:.0f} objects.",
        f"  DETECTIONS_PER_IMAGE: {detections}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A YAML string: JSON's form is one."""
    return json.dumps(text, ensure_ascii=False)
