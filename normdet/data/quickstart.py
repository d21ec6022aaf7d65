"""The embedded default: one real fluorescence image with its nuclei, cut into tiles.

The image and its instance masks (512x512, from the 2018 Data Science Bowl, CC0) lie in the package;
`nuclei/SOURCE.md` says where they are from. The left part trains, the right part tests, so no pixel
is in both.
"""

import importlib.resources
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from normdet.errors import NormdetError

SPLIT_COLUMN = 320
TRAIN_TILE, TRAIN_STRIDE = 128, 64
TEST_TILE = (256, 192)
# At a tile's edge, a very small part of a nucleus looks like noise.
MIN_PIXELS = 16


def default_folder() -> Path:
    """`quickstart` under `NORMDET_DATA`, or else under `datasets` in the current folder."""
    return Path(os.environ.get("NORMDET_DATA", "datasets")) / "quickstart"


def prepare(folder: str | Path | None = None) -> Path:
    """Make the data set in `folder` (see `default_folder`) unless it is there, and return it.

    `folder` appears complete or not at all, even if the run is interrupted.

    Raises:
        NormdetError: the folder cannot be written, or holds something else.
    """
    folder = default_folder() if folder is None else Path(folder)
    if all((folder / f"{part}.json").is_file() for part in ("train", "test")):
        return folder
    if folder.exists():
        raise NormdetError(f"{folder} exists but holds no quickstart data: move it away")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=".quickstart-", dir=folder.parent))
    except OSError as error:
        raise NormdetError(f"{folder.parent} cannot be written: {error.strerror}") from error
    try:
        _write(workshop / "data", *image_and_labels())
        try:
            os.rename(workshop / "data", folder)
        except OSError:
            # Another process was faster; its result is the same.
            if not (folder / "test.json").is_file():
                raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return folder


def image_and_labels() -> list[np.ndarray]:
    """The image and a number for each of its nuclei, each `(512, 512)` of 8 bits."""
    folder = importlib.resources.files("normdet.data") / "nuclei"
    arrays = []
    for name in ("image.png", "labels.png"):
        with (folder / name).open("rb") as file, Image.open(file) as picture:
            arrays.append(np.array(picture))
    return arrays


def _write(folder: Path, image: np.ndarray, mask: np.ndarray) -> None:
    (folder / "images").mkdir(parents=True)
    height, width = image.shape
    parts = {
        "train": (range(0, SPLIT_COLUMN), (TRAIN_TILE, TRAIN_TILE), (TRAIN_STRIDE, TRAIN_STRIDE)),
        "test": (range(SPLIT_COLUMN, width), TEST_TILE, TEST_TILE),
    }
    for part, (columns, tile, stride) in parts.items():
        images, annotations = [], []
        for top in range(0, height - tile[0] + 1, stride[0]):
            for left in columns[: len(columns) - tile[1] + 1 : stride[1]]:
                window = np.s_[top : top + tile[0], left : left + tile[1]]
                name = f"{part}_{top:03d}_{left:03d}.png"
                Image.fromarray(image[window]).save(folder / "images" / name)
                images.append(
                    {"id": len(images) + 1, "file_name": name, "height": tile[0], "width": tile[1]}
                )
                for rle in _nuclei(mask[window]):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": len(images),
                            "category_id": 1,
                            "iscrowd": 0,
                            "area": int(mask_util.area(rle)),
                            "bbox": mask_util.toBbox(rle).tolist(),
                            "segmentation": {**rle, "counts": rle["counts"].decode()},
                        }
                    )
        content = {
            "info": {"description": "nuclei of the 2018 Data Science Bowl (BBBC038v1), CC0"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "nucleus"}],
        }
        (folder / f"{part}.json").write_text(json.dumps(content))


def _nuclei(mask: np.ndarray) -> list[dict]:
    """One RLE for each label of `mask` `(H, W)` that covers enough of it; 0 is background."""
    labels, pixels = np.unique(mask, return_counts=True)
    return [
        mask_util.encode(np.asfortranarray(mask == label, dtype=np.uint8))
        for label in labels[(labels > 0) & (pixels >= MIN_PIXELS)]
    ]
