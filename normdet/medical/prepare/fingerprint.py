"""The numbers that describe a data set, to be saved beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from normdet.medical.prepare.statistics import mean_and_std, quantiles
from normdet.medical.prepare.write import Written
from normdet.version import __version__


def fingerprint_of(
    parts: Mapping[str, Sequence[Written]], categories: Sequence[str], intensities: dict
) -> dict:
    """Counts, sizes and grey values of the images by split.

    `pixel_mean` and `pixel_std` are those of the training images as written, in the order BGR.
    """
    every = [item for members in parts.values() for item in members]
    objects = [entry for item in every for entry in item.objects]
    mean, std = mean_and_std(sum(item.sums for item in parts["train"]))
    masks = [entry.get("segmentation") for entry in objects]
    # Training ignores crowds.
    bare = sum(not (entry.get("segmentation") or entry.get("iscrowd")) for entry in objects)
    spacings = Counter(item.spacing for item in every if item.spacing)
    counted = Counter(entry["category"] for entry in objects)
    return {
        "normdet": __version__,
        "images": {name: len(members) for name, members in parts.items()},
        "patients": {
            name: len({item.group for item in members if item.patient})
            for name, members in parts.items()
        },
        "objects": {
            name: sum(len(item.objects) for item in members) for name, members in parts.items()
        },
        "classes": {name: counted[name] for name in categories},
        "masks": any(masks) and not bare,
        "without_mask": bare,
        "rle": any(isinstance(mask, dict) for mask in masks),
        "objects_per_image": quantiles([len(item.objects) for item in every]),
        "object_size": quantiles(
            [float(np.sqrt(entry["bbox"][2] * entry["bbox"][3])) for entry in objects]
        ),
        "object_width": quantiles([entry["bbox"][2] for entry in objects]),
        "object_height": quantiles([entry["bbox"][3] for entry in objects]),
        "image_size": {
            "width": quantiles([item.width for item in every]),
            "height": quantiles([item.height for item in every]),
        },
        "pixel_mean": mean,
        "pixel_std": std,
        "intensity_before_window": intensities,
        "spacing_mm": [
            {"spacing": [round(value, 6) for value in spacing], "images": count}
            for spacing, count in spacings.most_common(10)
        ],
    }
