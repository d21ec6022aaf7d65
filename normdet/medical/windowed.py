"""Slices with the limits of their window; a volume's slices share their limits."""

from collections.abc import Iterator

from normdet.data.choice import DEFAULT, Choice
from normdet.data.slices import MAX_PIXELS, Slice, Source
from normdet.data.window import Window, window_limits
from normdet.files.faults import Report, stop
from normdet.medical.readers import read_slices


def read_windowed(
    source: Source,
    window: Window,
    *,
    axis: str = "axial",
    neighbours: int = 0,
    choice: Choice = DEFAULT,
    max_pixels: int = MAX_PIXELS,
    report: Report = stop,
) -> Iterator[tuple[Slice, tuple[float, float] | None]]:
    """Read the slices of a source, each with the limits for :func:`apply_window`.

    An image is kept in memory; a volume is read twice instead.

    Args:
        source: of :func:`normdet.medical.readers.find_sources`.
        window: how the limits are found.
        axis: this and the rest as in :func:`normdet.medical.readers.read_slices`.
    """
    if source.kind == "image":
        slices = list(
            read_slices(
                source, neighbours=neighbours, choice=choice, max_pixels=max_pixels, report=report
            )
        )
        limits = window_limits(window, slices) if slices else None
        yield from ((item, limits) for item in slices)
        return
    # The second reading, below, reports faults.
    first = read_slices(source, axis=axis, max_pixels=max_pixels, report=lambda sentence: None)
    limits = window_limits(window, first)
    again = read_slices(
        source, axis=axis, neighbours=neighbours, max_pixels=max_pixels, report=report
    )
    yield from ((item, limits) for item in again)
