"""The demo trains, reports, resumes, and does nothing twice."""

import json
import re

import pytest

from normdet.errors import NormdetError
from normdet.lab import demo

SHORT = ("SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.CHECKPOINT_PERIOD", "1")
SHORT += ("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "MODEL.DEVICE", "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quickstart_data):
    """The folder of a demo of two iterations."""
    folder = tmp_path_factory.mktemp("demo")
    demo.main(["--output", str(folder), *SHORT])
    return folder


@pytest.mark.slow
def test_it_leaves_metrics_pictures_and_a_page_that_stands_alone(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert list(metrics) == ["GN", "FRN+TLU"]
    for tasks in metrics.values():
        assert {task: list(values) for task, values in tasks.items()} == {
            "bbox": ["AP", "AP50"],
            "segm": ["AP", "AP50"],
        }
    for name in ("predictions.png", "curves.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    report = (finished / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 2
    assert not re.search(r"https?://|<script|<link", report)
    assert "normdet train --config-file quickstart/demo.yaml --norm FRN+TLU" in report


@pytest.mark.slow
def test_a_second_run_trains_nothing_and_reports_again(finished, capsys, monkeypatch):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    monkeypatch.setattr(demo, "run_all", lambda *_: pytest.fail("trained again"))
    demo.main(["--output", str(finished), *SHORT])
    assert "finished demo" in capsys.readouterr().out
    assert (finished / "report.html").read_text() == before


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_restart_begins_anew(finished, monkeypatch):
    run = finished / "frn_tlu"
    (run / "results.json").unlink()
    first = (finished / "gn" / "model_final.pth").stat().st_mtime_ns
    demo.main(["--output", str(finished), *SHORT])
    assert (run / "results.json").is_file()
    assert "training from iteration 2 to 2" in (run / "log.txt").read_text()
    assert (finished / "gn" / "model_final.pth").stat().st_mtime_ns == first

    there = []
    monkeypatch.setattr(demo, "run_all", lambda *_: there.append(run.exists()))
    with pytest.raises(NormdetError, match="gn holds no results"):
        demo.main(["--output", str(finished), "--restart", *SHORT])
    assert there == [False]
