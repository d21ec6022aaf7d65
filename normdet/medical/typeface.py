"""The letters of pictures."""

from pathlib import Path

import matplotlib
from PIL import ImageFont


def typeface(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: it has the letters of many scripts."""
    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)
