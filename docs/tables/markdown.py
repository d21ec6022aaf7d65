"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown; a bar within one is text."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (headers, *rows)]
    head, *body = (f"| {' | '.join(row)} |" for row in escaped)
    return "\n".join([head, f"| {' | '.join(['---'] * len(headers))} |", *body])
