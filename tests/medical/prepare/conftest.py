"""Real nuclei with known instances, also in the formats of hospitals."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from tests.medical.prepare.make import Case, blobs


@pytest.fixture(scope="session")
def nuclei(request) -> list[Case]:
    """Four images `(H, W)` uint16 with labels that do not overlap; synthetic where data lack."""
    try:
        folder = request.getfixturevalue("real_data") / "nuclei"
    except pytest.skip.Exception:
        return [blobs(seed) for seed in range(4)]
    content = json.loads((folder / "val.json").read_text())
    cases = []
    for image in content["images"][:4]:
        with Image.open(folder / "images" / image["file_name"]) as file:
            # 12 bits, as cameras and scanners give them.
            pixels = np.asarray(file.convert("L")).astype(np.uint16) * 16 + 3
        labels = np.zeros(pixels.shape, np.uint16)
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                mask = mask_util.decode(entry["segmentation"]).astype(bool)
                labels[mask & (labels == 0)] = labels.max() + 1
        cases.append(Case(pixels, labels))
    return cases
