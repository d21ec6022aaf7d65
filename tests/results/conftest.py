"""The scripts of results/ as modules: they belong to no package."""

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "results" / "scripts"


@pytest.fixture
def update_readme(monkeypatch):
    """results/scripts/update_readme.py, which draws no picture."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("update_readme")
    monkeypatch.setattr(module, "draw_over_batch", lambda panels, path: None)
    return module
