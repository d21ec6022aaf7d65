"""Lists in sentences."""

from collections.abc import Iterable

SHOWN = 3


def first_of(items: Iterable[object]) -> str:
    """The first few items as text, and how many more there are."""
    items = [str(item) for item in items]
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def listed(items: Iterable[object], joint: str = "and") -> str:
    """All items as text: `a, b and c`."""
    *most, last = [str(item) for item in items] or [""]
    return f"{', '.join(most)} {joint} {last}" if most else last
