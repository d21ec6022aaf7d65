"""One object drawn in each of three images, for exports of labelling tools."""

import io
import json

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80
BOX = [10, 12, 20, 24]  # x, y, width, height
OUTLINE = [(10, 12), (30, 12), (30, 36), (10, 36)]
FLAT = [v for point in OUTLINE for v in point]
NAMES = ("a", "b", "c")


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[12:36, 10:30] = 200
    Image.fromarray(pixels).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def png(mask):
    out = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(out, "PNG")
    return out.getvalue()
