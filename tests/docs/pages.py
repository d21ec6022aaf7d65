"""The pages of the documentation, and the blocks of code in them."""

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

REPO = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(REPO))
    for path in (
        REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "SECURITY.md",
        REPO / "results" / "PROTOCOL.md", *(REPO / "docs").rglob("*.md"),
    )
    if "_build" not in path.parts
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and the line it begins at."""

    language: str
    text: str
    line: int


def blocks(page: str, language: str) -> list[Block]:
    """The blocks of a language on a page, in order."""
    tokens = MarkdownIt().parse((REPO / page).read_text())
    fences = [Block(t.info.strip(), t.content, t.map[0] + 1) for t in tokens if t.type == "fence"]
    return [block for block in fences if block.language == language]


def pages_with(language: str) -> list[str]:
    """The pages that have such blocks."""
    return [page for page in PAGES if blocks(page, language)]
