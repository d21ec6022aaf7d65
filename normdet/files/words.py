"""Lists as a sentence names them."""

from collections.abc import Iterable

SHOWN = 3


def first_of(items: Iterable[str]) -> str:
    """The first few items as text, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
