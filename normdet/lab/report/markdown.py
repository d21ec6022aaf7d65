"""The parts of :mod:`normdet.files.page` as Markdown; pictures stay files beside it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

# Matches a cell that begins with a number or stands for a missing one.
_NUMBER = re.compile(r"[-+<x]? ?\d|-?$|not run$")


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document: `parts` are Markdown, one below the other."""
    return "\n\n".join([f"# {_plain(title)}", *parts]) + "\n"


def heading(text: str) -> str:
    """The title of a section."""
    return f"## {_plain(text)}"


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph of plain text; `note` sets it back."""
    return f"*{_plain(text)}*" if note else _plain(text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text, columns of numbers to the right."""
    rows = [list(row) for row in rows]
    columns = [[row[place] for row in rows] for place in range(len(head))]
    rule = ["---:" if rows and all(map(_NUMBER.match, column)) else "---" for column in columns]
    lines = [[_cell(c) for c in head], rule, *([_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def commands(lines: Iterable[str]) -> str:
    """Commands to type, one per line."""
    return "\n".join(["```bash", *lines, "```"])


def picture(png: Path, text: str) -> str:
    """The PNG `png`, in a folder beside the page; `text` says what it shows."""
    return f"![{_plain(text)}]({png.parent.name}/{png.name})"


def _plain(text: str) -> str:
    """Text with Markdown's characters escaped."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)


def _cell(text: str) -> str:
    return _plain(" ".join(text.split()))
