"""Hold out a part of a dataset by image, the same on every machine and in every run."""

import hashlib
import os
from dataclasses import replace

from normdet.data.records import Dataset
from normdet.errors import NormdetError

SIDES = ("train", "val")


def split(dataset: Dataset, part: str, share: float) -> Dataset:
    """The images of one part, with their annotations, in their order.

    An image's part depends only on its file name below the image folder, not on the order of the
    annotation file or on the machine. Images of one patient or slide that should stay together need
    another way to split.

    Args:
        dataset: is not changed.
        part: `"val"` is the part held out, `"train"` the rest.
        share: of the images to hold out, above 0 and below 1. Each part gets at least one image.

    Raises:
        NormdetError: unknown part, share out of range, or fewer than two images.
    """
    if part not in SIDES or not 0 < share < 1:
        raise NormdetError(
            f"dataset 'split:{part}:{share}:...' should read split:train:SHARE:DATASET or "
            "split:val:SHARE:DATASET with a SHARE between 0 and 1, as in split:val:0.2:voc:train"
        )
    count = len(dataset.records)
    if count < 2:
        raise NormdetError(f"a dataset of {count} image(s) cannot be split: two are the least")
    places = sorted(range(count), key=lambda index: _place(dataset, index))
    held = set(places[: min(max(round(share * count), 1), count - 1)])
    records = [
        record
        for index, record in enumerate(dataset.records)
        if (index in held) == (part == "val")
    ]
    return replace(dataset, records=records)


def _place(dataset: Dataset, index: int) -> tuple[bytes, str, int]:
    name = os.path.relpath(dataset.records[index]["file_name"], dataset.image_root)
    return hashlib.sha256(name.encode()).digest(), name, index
