"""The page needs no other file, and shows text as text."""

import base64
import re

from normdet.files import page


def test_a_page_needs_nothing_beside_it(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    text = page.page(
        "A & B",
        [
            page.heading("<b>"),
            page.paragraph("x < y"),
            page.table(["norm", "AP"], [["FRN+TLU", "1<2"]]),
            page.commands(["a --b 'c' > d"]),
            page.picture(tmp_path / "a.png", 'say "cheese"'),
        ],
    )
    assert "<title>A &amp; B</title>" in text and "<b>" not in text
    assert "1&lt;2" in text and "&gt; d" in text and "say &quot;cheese&quot;" in text
    assert base64.b64encode(b"\x89PNG").decode() in text
    assert not re.search(r"https?://|<script|<link|src=\"(?!data:)", text)
