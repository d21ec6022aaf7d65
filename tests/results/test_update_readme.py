"""The pages' tables are those of results/, and their pictures are there."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "results/PROTOCOL.md")


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_results(update_readme, page):
    text = (REPO / page).read_text()
    assert re.search("<!-- [a-z]+ -->", text)
    assert update_readme._filled(text) == text, "run results/scripts/update_readme.py"


@pytest.mark.parametrize("page", PAGES)
def test_what_pages_point_to_is_there(page):
    path = REPO / page
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    local = [target for target in targets if "://" not in target]
    assert local or page != "README.md"
    missing = [target for target in local if not (path.parent / target).exists()]
    assert not missing
