"""Nothing public is left out of the pages: commands, keys, parameters, targets, rooms."""

import re

import pytest
from detectron2.config import get_cfg

import normdet
from docs.tables import from_code
from normdet.options import METHODS

from .pages import PAGES, REPO, blocks


def rows(page: str) -> list[list[str]]:
    """The cells of every table of a page."""
    lines = (REPO / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines
            if line.startswith("| ")]  # fmt: skip


def leaves(node, prefix: str = "") -> set[str]:
    return set().union(
        *(leaves(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name}
          for name, value in node.items())
    )  # fmt: skip


def test_every_key_has_its_row_with_a_sentence_of_its_own():
    told = {row[0].strip("`"): row[2] for row in rows("docs/configs.md") if len(row) == 3}
    cfg = get_cfg()
    stock = leaves(cfg)
    normdet.add_normdet_config(cfg)
    methods = tuple(f"MODEL.NORMDET.{name}." for name in METHODS)
    ours = {key for key in leaves(cfg) - stock if not key.startswith(methods)}
    assert len(ours) > 30
    assert not {key for key in ours if len(told.get(key, "")) < 20}
    # The parameters of methods have a table of their own.
    assert "own parameters" not in " ".join(told.values())


def test_every_parameter_of_a_method_is_explained():
    explained = set(re.findall(r"`([A-Z_]+)`", " ".join(
        row[0] for row in rows("docs/configs.md") if len(row) == 2)))  # fmt: skip
    assert not {name for method in METHODS.values() for name in method.params} - explained


def test_every_command_is_in_the_readme_and_in_a_block_to_type():
    commands = re.findall(r"`normdet (\w+)`", from_code.commands())
    assert len(commands) > 10
    typed = " ".join(block.text for page in PAGES for block in blocks(page, "bash"))
    readme = (REPO / "README.md").read_text()
    for name in commands:
        assert re.search(rf"normdet {name}\b", typed) or name == "demo", name  # `make demo`
        assert re.search(rf"`(normdet )?{name}`|make {name}", readme), name


def test_every_target_of_make_is_documented():
    text = " ".join((REPO / page).read_text() for page in PAGES)
    targets = re.search(r"^.PHONY: (.+)$", (REPO / "Makefile").read_text(), re.MULTILINE)[1]
    assert not [name for name in targets.split() if f"make {name}" not in text]


def test_every_room_is_in_the_tree():
    first = " ".join(row[0] for row in rows("docs/architecture.md"))
    named = set(re.findall(r"`([\w.]+)/?`", first))
    package = REPO / "normdet"
    rooms = {p.name for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert not rooms - named - {"__init__.py", "__main__.py"}
    assert not named - rooms


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_every_exit_code_is_documented(code):
    assert [row for row in rows("docs/troubleshooting.md") if row[0] == str(code)]
