"""The display while pip works, and the message when it fails."""

import importlib
import io

import pytest

from tests.tools.conftest import TOOLS

# Said by pip 26.1 with `--progress-bar raw`.
SAID = """\
Collecting torch==2.14.1 (from -r requirements.txt (line 3))
  Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (27 kB)
Collecting numpy==2.4.6 (from -r requirements.txt (line 4))
  Using cached numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl.metadata (6.6 kB)
Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (426.8 MB)
Progress 213400000 of 426800000
Using cached numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl (16.9 MB)
Installing collected packages: numpy, torch
Successfully installed numpy-2.4.6 torch-2.14.1
""".splitlines(keepends=True)


@pytest.fixture
def progress(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("pip_progress")


def record(site, name):
    (site / f"{name}.dist-info").mkdir()
    (site / f"{name}.dist-info" / "RECORD").touch()


def test_a_log_gets_a_line_for_each_package(progress, tmp_path):
    out = io.StringIO()
    with progress.Progress(tmp_path, out=out) as shown:
        for line in SAID:
            shown.line(line)
    assert out.getvalue().splitlines() == [
        "  torch 2.14.1 (426.8 MB)", "  numpy 2.4.6 (16.9 MB)", "installing 2 packages",
    ]  # fmt: skip


def test_the_bar_moves_with_bytes_and_then_with_packages(progress, tmp_path):
    record(tmp_path, "pip-26.1")
    shown = progress.Progress(tmp_path, out=io.StringIO())
    assert shown.status() == "asking the package index"
    for line in SAID[:4]:
        shown.line(line)
    assert shown.status() == "looking up packages: 2"
    for line in SAID[4:6]:
        shown.line(line)
    quarter = "[" + "#" * 6 + "-" * 18 + "] "
    assert shown.status() == (quarter + "fetching 1 of 2: torch 2.14.1 (426.8 MB), 213 of 427 MB")
    for line in SAID[6:8]:
        shown.line(line)
    assert shown.status().endswith("] installing: 0 of 2")
    record(tmp_path, "numpy-2.4.6")
    assert shown.status() == "[" + "#" * 12 + "-" * 12 + "] installing: 1 of 2"


def test_the_number_of_pins_is_the_total_while_pip_still_looks(progress, tmp_path):
    shown = progress.Progress(tmp_path, expected=4, out=io.StringIO())
    for line in (SAID[0], SAID[4]):  # of an index that gives no metadata apart from the wheels
        shown.line(line)
    assert "fetching 1 of 4: torch" in shown.status()


def test_a_terminal_gets_one_line_and_is_left_clean(progress, tmp_path):
    out = io.StringIO()
    out.isatty = lambda: True
    with progress.Progress(tmp_path, out=out) as shown:
        shown.line(SAID[0])
    assert "\n" not in out.getvalue() and out.getvalue().endswith("\r\x1b[K")


def test_a_failure_shows_the_last_lines_and_where_the_log_is(
    setup_env, installer, tmp_path, monkeypatch, capsys
):
    venv = tmp_path / ".venv"
    (venv / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (venv / "bin").mkdir()
    python = venv / "bin" / "python"
    lines = "\\n".join(f"line {i}" for i in range(20)) + "\\nProgress 1 of 2\\nERROR: on fire"
    python.write_text(f"#!/bin/sh\nprintf '{lines}\\n'\nexit 1\n")
    python.chmod(0o755)
    with (tmp_path / "setup.log").open("w") as log:
        with pytest.raises(setup_env.SetupError, match="on fire .*setup.log"):
            setup_env.fill(venv, log)
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "  ERROR: on fire" and shown[0] == "  line 13"
    assert "line 0" in (tmp_path / "setup.log").read_text()
    assert "Progress" not in (tmp_path / "setup.log").read_text()
