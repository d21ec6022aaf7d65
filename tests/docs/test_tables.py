"""The pages' tables are those of the code and of results/."""

import pytest

from .pages import REPO

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def tables():
    from docs import tables

    patch = pytest.MonkeyPatch()
    patch.setattr(tables.from_results, "draw_over_batch", lambda panels, path: None)
    yield tables
    patch.undo()


def test_tables_are_those_of_the_code_and_the_results(tables):
    found = []
    for page in tables.pages():
        text = page.read_text()
        found += tables.BLOCK.findall(text)
        assert tables.filled(text, page) == text, f"{page.relative_to(REPO)}: run `make tables`"
    assert set(found) == set(tables.BLOCKS)


def test_every_report_has_its_page(tables):
    written = {path.name for path in (REPO / "docs" / "reports").glob("*.md")} - {"index.md"}
    assert written == {path.name for path in tables.report_pages()}
    assert all(page.read_text() == text for page, text in tables.report_pages().items())


def test_a_block_without_a_table_is_refused(tables):
    with pytest.raises(KeyError, match="nothing"):
        tables.filled("<!-- nothing -->\n<!-- /nothing -->", REPO / "README.md")
    kept = "text <!-- a comment --> text"
    assert tables.filled(kept, REPO / "README.md") == kept
