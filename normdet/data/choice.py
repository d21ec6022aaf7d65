"""The choice of channels and planes in files that have several.

Colours are not channels: a picture with red, green and blue samples has one channel and one plane.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normdet.errors import NormdetError

logger = logging.getLogger(__name__)

CHANNEL_FORMS = "one place for grey or three for red, green, blue, counted from 1, such as 1,2,2"
PLANE_FORMS = "all, middle, max (the brightest value at each pixel) or a number, counted from 1"
# The channels for red, green and blue if nothing is chosen, by the number of channels.
_DEFAULTS = {1: (1,), 2: (1, 2, 2)}
_DEFAULT = (1, 2, 3)


@dataclass(frozen=True)
class Choice:
    """Which channels and planes of a file are taken.

    Attributes:
        channels: places from 1, one for grey or three for colours; () takes `1` of one channel,
            `1,2,2` of two and `1,2,3` of three or more, and says so.
        planes: `"all"`, `"middle"`, `"max"` or a place from 1: of depth, time and pages.
    """

    channels: tuple[int, ...] = ()
    planes: str | int = "all"

    def pick(self, channels: Sequence[np.ndarray], name: str) -> np.ndarray:
        """Make an image `(H, W)` or `(H, W, 3)` from channels `(H, W)`.

        Raises:
            NormdetError: a channel that the file does not have.
        """
        count = len(channels)
        places = self.channels or _DEFAULTS.get(count, _DEFAULT)
        if max(places) > count:
            raise NormdetError(f"{name} has {count} channels, and channel {max(places)} is chosen")
        if count > 1 and not self.channels:
            tell_of_channels(count, places)
        taken = [channels[place - 1] for place in places]
        return taken[0] if len(taken) == 1 else np.stack(taken, axis=-1)

    def count(self, planes: int) -> int:
        """The number of images in a file with this many planes."""
        return planes if self.planes == "all" else min(planes, 1)

    def places(self, planes: int, name: str) -> list[int]:
        """The planes to read, counted from 0.

        Raises:
            NormdetError: a plane that the file does not have.
        """
        if self.planes in ("all", "max"):
            return list(range(planes))
        if self.planes == "middle":
            return [planes // 2]
        if self.planes > planes and planes > 1:
            raise NormdetError(f"{name} has {planes} planes, and plane {self.planes} is chosen")
        # A file of one plane leaves no choice.
        return [min(self.planes, planes) - 1]


DEFAULT = Choice()


def parse_choice(channels: str = "", planes: str = "all") -> Choice:
    """Read `--channels` and `--planes`, or `INPUT.CHANNELS` and `INPUT.PLANES`.

    Raises:
        NormdetError: on anything else, with the forms.
    """
    places = tuple(int(text) if text.strip().isdigit() else 0 for text in channels.split(","))
    places = () if not channels.strip() else places
    if len(places) not in (0, 1, 3) or not all(places):
        raise NormdetError(f"channels {channels!r}: {CHANNEL_FORMS}")
    if planes in ("all", "middle", "max"):
        return Choice(places, planes)
    if not (planes.isdigit() and int(planes)):
        raise NormdetError(f"planes {planes!r}: {PLANE_FORMS}")
    return Choice(places, int(planes))


@functools.cache
def tell_of_channels(count: int, places: tuple[int, ...]) -> None:
    taken = ",".join(map(str, places))
    logger.warning(
        "images have %d channels: %s become red, green and blue; --channels, or INPUT.CHANNELS in "
        "training, takes others",
        count,
        taken,
    )
