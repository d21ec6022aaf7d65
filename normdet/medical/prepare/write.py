"""Write the folder: images first, annotation files at the end."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from normdet.medical.prepare.statistics import Intensities, channel_sums

IMAGES = "images"
# The longest name in bytes. File systems allow 255, and suffixes are added later.
_LONGEST = 200


@dataclass
class Written:
    """An image in the folder, with its annotations and its data for splits and statistics.

    Attributes:
        ignore: the RLE of pixels that are neither object nor background, or None.
        named_by: the file, if it names a patient, from which :meth:`Stack.group_of` takes `group`.
    """

    file_name: str
    height: int
    width: int
    objects: list[dict]
    group: str
    split: str | None
    patient: bool
    spacing: tuple[float, ...] | None
    sums: np.ndarray = field(repr=False)
    named_by: Path | None = None
    ignore: dict | None = None


@dataclass
class Collected:
    """The images written for one stack or for all, and notes on them."""

    written: list[Written] = field(default_factory=list)
    intensities: Intensities = field(default_factory=Intensities)
    digest: str = ""
    empty: int = 0
    faults: int = 0

    def add(self, other: "Collected") -> None:
        """Append the images of another stack."""
        self.written += other.written
        self.intensities.whole += other.intensities.whole
        self.intensities.inside += other.intensities.inside
        self.digest = hashlib.sha256((self.digest + other.digest).encode()).hexdigest()
        self.empty += other.empty
        self.faults += other.faults


def file_name_of(name: str, pixels: np.ndarray) -> str:
    """The file for pixels: PNG for 8 bits and for one channel of 16 bits, TIFF for others.

    A name that is too long for file systems keeps its end and gets a hash of the whole name.
    """
    if len(name.encode()) > _LONGEST:
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        name = f"{digest}_{name.encode()[-_LONGEST:].decode(errors='ignore')}"
    png = pixels.dtype == np.uint8 or (pixels.dtype == np.uint16 and pixels.ndim == 2)
    return f"{name}.{'png' if png else 'tif'}"


def write_image(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Write pixels without loss, in the format of :func:`file_name_of`.

    Returns:
        The pixels' channel sums.
    """
    if path.suffix == ".png":
        # zlib's run-length strategy is twice as fast here, and files are smaller.
        Image.fromarray(pixels).save(path, compress_level=1, compress_type=zlib.Z_RLE)
    else:
        photometric = "rgb" if pixels.ndim == 3 else "minisblack"
        # Write no metadata, not even the time.
        tifffile.imwrite(
            path, pixels, photometric=photometric, compression="zlib", metadata=None, software=False
        )
    return channel_sums(pixels)


def coco_content(written: Sequence[Written], categories: Sequence[str], patients: dict) -> dict:
    """The content of a COCO file of these images; patients become numbers."""
    ids = {name: index for index, name in enumerate(categories, start=1)}
    images, annotations = [], []
    for number, item in enumerate(written, start=1):
        image = {
            "id": number,
            "file_name": item.file_name,
            "height": item.height,
            "width": item.width,
        }
        if item.patient:
            image["patient"] = patients[item.group]
        if item.spacing:
            image["spacing"] = [round(value, 6) for value in item.spacing]
        if item.ignore:
            image["ignore"] = item.ignore
        images.append(image)
        for entry in item.objects:
            rest = {key: value for key, value in entry.items() if key != "category"}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[entry["category"]],
                    **rest,
                }
            )
    return {
        "info": {"description": "made by normdet prepare"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for name, index in ids.items()],
    }


def write_json(path: Path, content: dict, indent: int | None = None) -> None:
    """Write JSON in UTF-8, so that names of any script stay readable."""
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
