"""A page that opens without a network: one HTML file, its pictures inside."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

# A cell with more characters than this is read as text.
_SENTENCE = 40
# Nothing is cut off at any width. Text and commands wrap. Tables scroll under a shadow while their
# first column stays. On a phone pictures scroll too, so that they stay readable.
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 66rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; max-width: max-content;
  background: linear-gradient(90deg, transparent, #fff 70%) 100% 0 / 3rem 100% no-repeat local,
    linear-gradient(270deg, rgb(0 0 0 / .22), transparent) 100% 0 / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
td { white-space: nowrap; }
td.text { white-space: normal; text-align: left; min-width: 16rem; overflow-wrap: anywhere; }
.picture { overflow-x: auto; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: .7rem 1rem; font-size: .85rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre code { display: block; font: inherit; padding-left: 2ch; text-indent: -2ch; }
.note { color: #555; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  h1 { font-size: 1.35rem; }
  th, td { padding: .3rem .45rem; }
  pre { padding: .6rem .7rem; }
  .picture img { max-width: none; width: 40rem; }
}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document: `parts` are HTML, one below the other."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """The title of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph of plain text; `note` sets it back."""
    return f"<p{' class=note' if note else ''}>{escape(text)}</p>"


def verdict(text: str) -> str:
    """The conclusion, set off from the text."""
    return f"<p><strong>{escape(text)}</strong></p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; the first column names the rows, and sentences are wrapped."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = (" class=text" if len(cell) > _SENTENCE else "" for cell in cells)
        parts = zip(cells, kinds, strict=True)
        return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for c, k in parts) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    inner = f"<thead>{line(head, 'th')}</thead>\n<tbody>\n{body}\n</tbody>"
    # An element that can have the focus can be scrolled with the keyboard.
    return f"<div class=scroll tabindex=0>\n<table>\n{inner}\n</table>\n</div>"


def commands(lines: Iterable[str]) -> str:
    """Commands to type, one per line; a long one wraps, but is copied as one line."""
    typed = "\n".join(f"<code>{escape(line)}</code>" for line in lines)
    return f"<pre>{typed}</pre>"


def picture(png: Path | bytes, text: str) -> str:
    """A PNG, from bytes or a file, stored in the page; `text` says what it shows."""
    data = base64.b64encode(png if isinstance(png, bytes) else png.read_bytes()).decode()
    image = f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
    return f"<div class=picture tabindex=0>{image}</div>"
