"""The same parts as the page's, with text as text."""

import inspect

from normdet.files import page
from normdet.lab.report import markdown


def test_every_part_of_the_page_has_its_form():
    def public(module):
        members = inspect.getmembers(module, inspect.isfunction)
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in members
            if not name.startswith("_") and function.__module__ == module.__name__
        }

    parts = public(page)
    # The doctor's, which writes no Markdown.
    parts.pop("verdict")
    assert public(markdown) == parts


def test_text_is_text_and_pictures_lie_beside(tmp_path):
    text = markdown.page(
        "A *b* & c",
        [
            markdown.heading("# <b>"),
            markdown.paragraph("x_y", note=True),
            markdown.table(["norm", "AP"], [["a|b", "1\n2"]]),
            markdown.commands(["a --b '*'"]),
            markdown.picture(tmp_path / "figures" / "a.png", "[what]"),
        ],
    )
    assert text == (
        "# A \\*b\\* & c\n\n## \\# \\<b\\>\n\n*x\\_y*\n\n"
        "| norm | AP |\n| --- | ---: |\n| a\\|b | 1 2 |\n\n"
        "```bash\na --b '*'\n```\n\n![\\[what\\]](figures/a.png)\n"
    )
