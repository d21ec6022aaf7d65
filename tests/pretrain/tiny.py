"""A recipe small enough to train within a test, and images for it."""

from pathlib import Path

import numpy as np
from PIL import Image

from normdet.config import load_config

SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
]  # fmt: skip
TINY = [*SMALL, "PRETRAIN.SIZE", "32", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01",
        "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]  # fmt: skip


def draw(folder: Path, value: int, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(value)
    for index in range(count):
        pixels = rng.integers(0, 60, (40, 48, 3), dtype=np.uint8) + np.uint8(value)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")


def config(data, out, *opts, norm="FRN+TLU"):
    keys = ["PRETRAIN.DATA", str(data), "OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "4"]
    return load_config("pretrain/base.yaml", [*TINY, *keys, *opts], norm, ["backbone"])
