"""The tables of the pages, each made from results/ or from the code."""

import os
import re
from functools import cache, partial
from pathlib import Path

from . import from_code, from_results

REPO = Path(__file__).resolve().parents[2]

# The tables, by the NAME in `<!-- NAME -->` and `<!-- /NAME -->` that encloses each.
BLOCKS = {
    "commands": from_code.commands,
    "configs": from_code.configs,
    "keys": from_code.keys,
    "methods": from_code.methods,
    "names": from_code.names,
    "networks": from_code.networks,
    "parameters": from_code.parameters,
    "ways": from_code.ways,
    "parts": from_code.parts,
    "published": from_code.published,
    "ablations": from_results.ablations,
    "agreement": from_results.agreement,
    "bench": from_results.bench,
    "comparisons": from_results.comparisons,
    "contrasts": from_results.contrasts,
    "crossed": from_results.crossed,
    "demo": from_results.demo,
    "doctor": from_results.doctor,
    "evalnorm": partial(from_results.norms, "evalnorm_nuclei.csv"),
    "finetune": from_results.finetune,
    "kept": from_results.kept,
    "medical": from_results.medical,
    "norms": partial(from_results.norms, "quickstart_norms.csv"),
    "operators": from_results.operators,
    "planned": partial(from_results.contrasts, planned_alone=True),
    "pretrained": from_results.pretrained,
    "reports": from_results.reports,
    "starts": from_results.starts,
    "step": from_results.step,
    "tiles": from_results.tiles,
    "warm": from_results.warm,
}
BLOCK = re.compile(r"<!-- (?P<name>\w+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


def pages() -> list[Path]:
    """The pages that have tables: the README, the protocol and those of the site."""
    site = [p for p in (REPO / "docs").rglob("*.md") if "_build" not in p.parts]
    return [REPO / "README.md", REPO / "results" / "PROTOCOL.md", *sorted(site)]


def filled(text: str, page: Path) -> str:
    """The text of a page, with its tables written anew from the code and results/.

    Raises:
        KeyError: a block that no table is made for.
    """
    here = os.path.relpath(REPO / "results", page.parent)

    def block(match: re.Match) -> str:
        name = match["name"]
        table = _table(name).replace("](results/", f"]({here}/")
        return f"<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->"

    return BLOCK.sub(block, text)


def report_pages() -> dict[Path, str]:
    """A page of the site for each comparison's report, which it includes."""
    folder = REPO / "docs" / "reports"
    return {
        folder / f"{path.parent.name}.md": (
            f"```{{include}} ../../{path.relative_to(REPO)}\n:relative-images:\n```\n"
        )
        for path in sorted((REPO / "results" / "compare").glob("*/report.md"))
    }


@cache
def _table(name: str) -> str:
    return BLOCKS[name]()
