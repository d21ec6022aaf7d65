"""results/scripts/doctor_examples.py: the table that the thresholds are read off."""

import csv
import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "results" / "scripts"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("doctor_examples")


@pytest.mark.slow
def test_a_row_for_each_set_size_and_stage(tool, config, weights, folder, tmp_path, monkeypatch):
    out = tmp_path / "results" / "doctor.csv"
    words = ["--config-file", config, "--weights", weights, "--set", f"my images={folder}"]
    words += ["--set", f"half={folder}/deeper", "--sizes", 64, 96, "--out", out]
    monkeypatch.setattr(sys, "argv", ["doctor_examples.py", *map(str, words)])
    tool.main()
    rows = list(csv.DictReader(out.open()))
    assert [row["stage"] for row in rows] == ["stem", "res2", "res3", "res4", "res5"] * 4
    assert [row["count"] for row in rows[::5]] == ["8", "1", "8", "1"]
    assert [row["short_side"] for row in rows[::5]] == ["64", "64", "96", "96"]
    assert all(float(row["distance"]) < 0.5 for row in rows[:5]) and rows[0]["noise_2"]
    assert rows[0]["noise_4"] == "" and all(row["versions"] and row["date"] for row in rows)
    # The command can be repeated, except for this machine's paths.
    assert str(tmp_path.parent) not in rows[0]["command"]
    assert f"--set 'my images={'/'.join(folder.parts[-2:])}'" in rows[0]["command"]
