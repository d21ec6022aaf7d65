"""Pages outside the site have links that lead somewhere, and true claims about the package."""

import re

import pytest

from .pages import PAGES, REPO


@pytest.mark.parametrize("page", PAGES)
def test_links_of_pages_lead_to_files(page):
    path = REPO / page
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [target for target in local if target and not (path.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_that_pages_name_are_there(page):
    text = (REPO / page).read_text()
    named = re.findall(r"`((?:tests|tools|configs|normdet|docs)/[\w./-]*\w/?)`", text)
    assert not [path for path in named if not (REPO / path).exists()]


def test_readme_is_short_and_its_badges_are_true():
    text = (REPO / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    badges = dict(re.findall(r"!\[([\w -]+): ?([^\]]+)\]\(https://img.shields.io", text))
    setup = (REPO / "setup.py").read_text()
    assert badges == {
        "Python": re.search(r'python_requires=">=([\d.]+)"', setup)[1] + "+",
        "torch": re.search(r'"torch>=([\d.]+)', setup)[1] + "+",
        "Licence": re.search(r'license="([^"]+)"', setup)[1],
    }


def test_citation_names_this_version():
    yaml = pytest.importorskip("yaml")
    from normdet.version import __version__

    cited = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert str(cited["version"]) == __version__ and cited["license"] == "Apache-2.0"
    assert {"cff-version", "title", "authors", "message"} <= cited.keys()
