"""Neighbouring slices as the channels of one image: 2.5 dimensions for a 2-D detector."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from normdet.data.slices import Slice


def with_neighbours(slices: Iterator[Slice], step: int) -> Iterator[Slice]:
    """Each slice with the one `step` before and the one `step` after: `(H, W, 3)`.

    At the ends of a stack, and beside a slice of another size, the slice replaces the missing
    neighbour. Colour slices stay as they are. `2 * step + 1` slices are in memory at a time.
    """
    window: deque[Slice] = deque()
    center = 0
    for item in slices:
        window.append(item)
        if len(window) > center + step:
            yield _stacked(window, center, step)
            if center == step:
                window.popleft()
            else:
                center += 1
    while center < len(window):
        yield _stacked(window, center, step)
        if center == step:
            window.popleft()
        else:
            center += 1


def _stacked(window: deque[Slice], center: int, step: int) -> Slice:
    item = window[center]
    if item.pixels.ndim == 3:
        return item
    channels = []
    for index in (center - step, center, center + step):
        beside = window[index] if 0 <= index < len(window) else item
        fits = beside.pixels.shape == item.pixels.shape and beside.stack == item.stack
        channels.append(beside.pixels if fits else item.pixels)
    return replace(item, pixels=np.stack(channels, axis=-1))
