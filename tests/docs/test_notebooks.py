"""The notebooks run from their first cell to their last, in an empty folder."""

import pytest

from .pages import REPO

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
# What a notebook prints when it has reached its end.
PRINTED = {"first_norm_swap": "box AP", "microscopy_to_counts": "in truth"}
NOTEBOOKS = sorted((REPO / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch, quickstart_data):
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("NORMDET_DATA", str(quickstart_data.parent.absolute()))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=1500, kernel_name="python3", resources=resources
    ).execute()
    texts = [o["text"] for cell in notebook.cells for o in cell.get("outputs", []) if "text" in o]
    assert any(PRINTED[path.stem] in text for text in texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_complete_and_name_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = path.read_text()
    assert not [place for place in ("/home/", "/root/", "/tmp/", "/usr/") if place in text]
