"""A run in memory, in JSON and in a table is one row, also from earlier versions of normdet."""

import json

import pytest

from normdet import NormdetError
from normdet.lab.compare import runs
from normdet.lab.compare.runs import AP_COLUMNS, COLUMNS, Runs, read_run, write_run
from tests.conftest import REPO
from tests.lab.compare.synthetic import run_of

# What an earlier version wrote: AP that was not measured is null, and one column is gone since.
EARLIER = {
    "run": "GN-b2-s1", "dataset": "nuclei coco:val.json:images", "norm": "GN", "batch_size": 2,
    "seed": 1, "init": "random", "option": "GN", "role": "test", "lr": 0.02, "lr_factor": 1.0,
    "iterations": 300, "images_seen": 600, "config_hash": "739f041ccfac", "note": "",
    "status": "done", "box_AP": 40.25, "box_AP50": None, "step_s": 0.5, "commit": "",
    "versions": "normdet 0.1.0", "machine": "a machine", "memory_mb": 1480, "wall_s": 168.6,
    "date": "2026-11-26T14:55Z", "gone_since": 7,
}  # fmt: skip


def cell(out, name, row):
    folder = out / "cells" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(row))
    return folder / "run.json"


def test_the_columns_are_those_of_every_committed_table():
    tables = list((REPO / "results" / "compare").glob("*/runs.csv"))
    assert len(tables) > 5
    for table in tables:
        head = table.read_text().partition("\n")[0]
        assert head.rstrip("\r") == ",".join(COLUMNS), table
        assert all(run.name and run.norm for run in runs.read_table(table))


def test_a_run_survives_json(tmp_path):
    run = run_of("GN", 2, 1, 40.123456)
    write_run(run, tmp_path / "run.json")
    assert read_run(tmp_path / "run.json") == run
    assert read_run(tmp_path / "none.json") is None


def test_a_folder_of_an_earlier_version_loads(tmp_path):
    run = read_run(cell(tmp_path, "GN-b2-s1", EARLIER))
    assert (run.name, run.key, run.finished) == ("GN-b2-s1", ("GN", 2, 1), True)
    assert run.scores == {"box_AP": 40.25} and (run.memory_mb, run.train_s) == (1480, None)
    found = Runs(tmp_path)
    assert found.get("GN-b2-s1") == run and found.get("GN-b2-s2") is None
    found.write_table()
    assert runs.read_table(tmp_path / "runs.csv") == [run]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"run": "a"}', '{"run": "a", "config_hash": "x", "seed": "one"}',
     '{"run": "a", "config_hash": "x", "lr": [1]}'],
)  # fmt: skip
def test_a_file_that_is_no_run_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(NormdetError, match=r"run\.json .*remove it to run it again"):
        read_run(tmp_path / "run.json")


def test_a_run_that_ends_is_added_without_reading_the_others(tmp_path, monkeypatch):
    cell(tmp_path, "GN-b2-s1", EARLIER)
    cell(tmp_path, "BN-b2-s1", {**EARLIER, "run": "BN-b2-s1", "norm": "BN"})
    found = Runs(tmp_path)
    monkeypatch.setattr(runs, "read_run", lambda file: pytest.fail(f"{file} is read again"))
    found.add(run_of("FRN", 1, 1, 41.0))
    table = runs.read_table(tmp_path / "runs.csv")
    assert [run.norm for run in table] == ["BN", "FRN", "GN"]
    assert table[1].score("mask_AP") == 41.0 and set(table[1].scores) <= set(AP_COLUMNS)
