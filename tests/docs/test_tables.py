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


def test_accuracy_against_batch_size(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.from_results, "RESULTS", tmp_path)
    assert tables.from_results.pretrained() == "Planned and not run yet."
    rows = [f"{norm},{batch},{seed},{90 + seed - (norm == 'BN') * (batch == 2) * 20}"
            for norm in ("BN", "GN") for batch in (2, 32) for seed in (1, 2, 3)]  # fmt: skip
    (tmp_path / "pretrain.csv").write_text("\n".join(["norm,batch,seed,top-1", *rows, "WS,2,1,50"]))
    lines = tables.from_results.pretrained().splitlines()
    assert "| BN | 72.0 (71.0 to 73.0) | 92.0 (91.0 to 93.0) |  |" in lines
    assert "| GN | 92.0 (91.0 to 93.0) | 92.0 (91.0 to 93.0) | -20.0 (-20.0 to -20.0) |" in lines
    assert "| WS | 50.0 |  |  |" in lines


def test_agreement_against_images_and_steps(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.from_results, "RESULTS", tmp_path)
    head = "model,target,method,metric,value"
    cells = {"distilled": 0.38, '"distilled, 16 images, 60 steps"': 0.3,
             '"distilled, 64 images, 240 steps, keep 0.9"': 0.9}  # fmt: skip
    rows = [f"resnet50-imagenet,FRN+TLU,{method},agreement,{v}" for method, v in cells.items()]
    (tmp_path / "conversion.csv").write_text("\n".join([head, rows[0]]))
    assert tables.from_results.warm() == "Planned and not run yet."
    (tmp_path / "conversion.csv").write_text("\n".join([head, *rows]))
    lines = tables.from_results.warm().splitlines()
    assert lines[0] == "| images | 60 steps | 240 steps, keep 0.9 |"
    assert lines[2:] == ["| 16 | 0.30 |  |", "| 64 |  | 0.90 |"]
