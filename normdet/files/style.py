"""The style of all our pictures: colours of runs and of classes, and how images are shown."""

from pathlib import Path
from typing import IO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart too.
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")

# First those of Okabe and Ito's colours that stand out from grey and from stains. Each later colour
# is the bright or saturated one that is farthest from all before it. Any two of these 24 differ by
# 17 or more in CIEDE2000.
CLASS_COLOURS = (
    "#56B4E9", "#E69F00", "#F0E442", "#009E73", "#D55E00", "#CC79A7",
    "#0044FF", "#666600", "#88FFEE", "#BB1144", "#00EE44", "#FFBBAA",
    "#9988FF", "#775588", "#EECCFF", "#999966", "#007799", "#CC11EE",
    "#FF5555", "#007711", "#BBDDAA", "#885500", "#00BBBB", "#55AA00",
)  # fmt: skip


def class_colour(index: int) -> str:
    """The colour `"#RRGGBB"` of a class, by its number from 0; colours repeat after 24."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def run_style(index: int) -> dict[str, str]:
    """Colour, marker and dash of the `index`th of many series."""
    turn = index // len(RUN_COLOURS)
    return {
        "color": RUN_COLOURS[index % len(RUN_COLOURS)],
        # One more marker than colours, so that colour and marker together tell series apart.
        "marker": "osD^vPX"[index % 7],
        "linestyle": ("-", "--", ":", "-.")[turn % 4],
    }


def brightened(image: np.ndarray) -> np.ndarray:
    """Grey values in [0, 1], scaled so that a few very bright spots do not darken the rest."""
    low, high = np.percentile(image, (1, 99.5))
    # Do not stretch whole numbers one step apart to black and white.
    least = 1 if np.issubdtype(image.dtype, np.integer) else np.finfo(np.float32).tiny
    if image.dtype == np.uint8:  # 256 values are brightened, not all pixels
        levels = np.arange(256)
        return _between(levels, low, max(high - low, least))[image]
    return _between(image, low, max(high - low, least))


def _between(values: np.ndarray, low: float, width: float) -> np.ndarray:
    return np.clip((values - low) / width, 0, 1) ** 0.7


def save(figure: Figure, file: Path | IO[bytes]) -> None:
    """Write `figure` as PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", facecolor="white")
