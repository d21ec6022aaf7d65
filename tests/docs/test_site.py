"""The site builds without a warning, its links lead somewhere, and it fetches from no host."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from .pages import REPO

pytest.importorskip("sphinx")
pytestmark = pytest.mark.slow
# Attributes by which a page makes a browser fetch something.
_FETCHED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src")}
# Links that are metadata of the page and are not fetched.
_NOT_FETCHED = {"canonical", "search", "index", "next", "prev", "author"}


class _Page(HTMLParser):
    """A page's anchors, its links, and the files that it fetches."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self.ids |= {attrs[name] for name in ("id", "name") if name in attrs}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        for name in attrs:
            if (tag, name) in _FETCHED and attrs.get("rel") not in _NOT_FETCHED:
                self.fetched.append(attrs[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site: what `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", f"{out}/doctrees", "docs", f"{out}/html"],
        cwd=REPO, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return out / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, _Page]:
    return {path.resolve(): _Page(path.read_text()) for path in site.rglob("*.html")}


def test_every_page_is_in_it(pages, site):
    for name in ("start", "which-norm", "configs", "architecture", "notebooks/first_norm_swap"):
        assert (site / f"{name}.html").resolve() in pages
    assert "FilterResponseNorm2d" in (site / "api" / "layers.html").read_text()


def test_internal_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            lost = anchor and target in pages and anchor not in pages[target].ids
            if lost or not target.exists():
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_nothing_is_fetched_from_elsewhere(pages, site):
    fetched = [f"{p.name}: {url}" for p, page in pages.items() for url in page.fetched]
    assert not [url for url in fetched if "://" in url or ": //" in url]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet
