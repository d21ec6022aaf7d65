"""The scripts of tools/ as modules: they belong to no package."""

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def installer(monkeypatch):
    """tools/install_detectron2.py."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("install_detectron2")


@pytest.fixture
def setup_env(monkeypatch, installer):
    """tools/setup_env.py; `installer` is the module that it imports."""
    return importlib.import_module("setup_env")


@pytest.fixture
def stub_python(tmp_path):
    """A function that writes an executable answering as a Python would and returns its path."""

    def write(name, answer, status=0):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
        path.chmod(0o755)
        return str(path)

    return write
