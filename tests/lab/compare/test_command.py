"""`normdet compare` from its arguments to its report, with fake and with real training."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from normdet import NormdetError, cli
from normdet.engine import Interrupted
from normdet.lab.compare import command, comparison
from normdet.lab.compare.cell import Task
from normdet.lab.compare.runs import Run

FAKE = """
import json, sys, time
from pathlib import Path
folder, ap, wait = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
with (folder.parent.parent / "order.txt").open("a") as file:
    file.write(folder.name + "\\n")
while not wait.exists():
    time.sleep(0.02)
if ap == "diverge":
    sys.exit(3)
if ap == "crash":
    sys.exit("a bug")
(folder / "results.json").write_text(json.dumps({"bbox": {"AP": float(ap)}}))
"""
GRID = ("--config-file", "quickstart/base.yaml", "--norms", "BN,GN", "--batch-sizes", "1,2")


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """The command, with its runs replaced by a script that gives the AP the test sets."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    go = tmp_path / "go"
    go.touch()
    real = comparison.Comparison.task
    scores = {}

    def task(self, cell):
        made = real(self, cell)
        ap = scores.get(cell.slug, 40.0 + cell.seed + (2 + cell.seed) * (cell.arm.name == "GN"))
        words = (sys.executable, str(script), str(made.folder), str(ap), str(go))
        return Task(made.title, made.folder, words, made.run)

    monkeypatch.setattr(comparison.Comparison, "task", task)

    def run(*words):
        return command.main([*GRID, "--out", str(tmp_path / "out"), "--jobs", "2", *words])

    run.out, run.scores, run.go = tmp_path / "out", scores, go
    return run


def ran(compare):
    file = compare.out / "order.txt"
    return file.read_text().split() if file.exists() else []


def table(compare):
    with (compare.out / "runs.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_grid_runs_once_and_grows(compare, capsys):
    assert compare("--seeds", "2") == 0
    assert len(ran(compare)) == 8
    rows = table(compare)
    assert rows["BN-b1-s2"]["images_seen"] == rows["BN-b2-s2"]["images_seen"] == "800"
    assert (rows["BN-b1-s1"]["lr"], rows["BN-b2-s1"]["lr"]) == ("0.01", "0.02")
    assert rows["BN-b1-s1"]["config_hash"] == rows["BN-b1-s2"]["config_hash"]
    assert "[8/8]" in capsys.readouterr().out

    assert compare("--seeds", "2") == 0
    assert len(ran(compare)) == 8  # nothing twice
    assert compare("--seeds", "3", "--norms", "BN,GN,IN") == 0
    assert len(ran(compare)) == 18
    assert "3 seeds: 18 of 18" in (compare.out / "report.md").read_text()


@pytest.mark.slow
def test_another_config_is_refused_in_one_sentence(compare):
    compare("--seeds", "1")
    with pytest.raises(NormdetError, match=r"SOLVER.MAX_ITER was 400 and is 500.*another --out"):
        compare("--seeds", "1", "SOLVER.MAX_ITER", "500")
    with pytest.raises(NormdetError, match=r"DATASETS.TRAIN was .*another --out"):
        compare("--seeds", "1", "--lr-grid", "0.5,1")
    variant = ("--variant", "mine=GN MODEL.NORMDET.GN.NUM_GROUPS 16")
    compare("--seeds", "1", *variant)
    with pytest.raises(NormdetError, match=r"another config .*the variant another name"):
        compare("--seeds", "1", variant[0], variant[1].replace("16", "8"))


@pytest.mark.slow
def test_a_run_begun_under_another_config_is_not_resumed(compare):
    variant = ("--seeds", "1", "--variant", "mine=GN MODEL.NORMDET.GN.NUM_GROUPS 16")
    compare(*variant)
    (compare.out / "cells" / "mine-b1-s1" / "run.json").unlink()  # killed before its end
    with pytest.raises(NormdetError, match="another config"):
        compare(*variant[:3], variant[3].replace("16", "8"))


@pytest.mark.slow
def test_the_plan_runs_from_the_copy_it_kept(compare, tmp_path):
    compare("--seeds", "1")
    kept = (compare.out / "config.yaml").read_text()
    assert "MAX_ITER: 400" in kept and json.loads((compare.out / "plan.json").read_text())


@pytest.mark.slow
def test_a_crash_is_named_and_tried_again_and_a_divergence_is_a_result(compare, capsys):
    compare.scores.update({"BN-b1-s1": "diverge", "GN-b2-s1": "crash"})
    assert compare("--seeds", "1") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"crashed: GN-b2-s1: a bug; its log is \S+/GN-b2-s1/output.txt", out)
    assert "BN, 1 image, seed 1: diverged" in out
    assert [table(compare)[run]["status"] for run in ("BN-b1-s1", "GN-b2-s1", "GN-b1-s1")] == [
        "diverged", "crashed", "done",
    ]  # fmt: skip
    del compare.scores["GN-b2-s1"]
    assert compare("--seeds", "1") == 0
    assert ran(compare).count("GN-b2-s1") == 2 and ran(compare).count("BN-b1-s1") == 1


@pytest.mark.slow
def test_rates_are_picked_before_and_apart(compare):
    compare.scores.update(
        {"GN-b1-tuning-lr0.5": 30.0, "GN-b1-tuning-lr1": 20.0, "GN-b1-tuning-lr2": "diverge"}
    )
    compare.scores.update({f"BN-b1-tuning-lr{f}": "diverge" for f in ("0.5", "1", "2")})
    assert compare("--seeds", "1", "--lr-grid", "0.5,1,2") == 0
    order = ran(compare)
    assert all("tuning" in run for run in order[:12]) and len(order) == 16
    assert {"GN-b1-s1-lr0.5", "BN-b1-s1-lr0.5"} < set(order[12:])  # all diverged: the lowest
    rows = table(compare)
    assert rows["GN-b1-s1-lr0.5"]["lr"] == "0.005"
    assert rows["GN-b1-s1-lr0.5"]["dataset"] == "quickstart:test"
    assert rows["GN-b1-tuning-lr1"]["dataset"] == "split:val:0.2:quickstart:train"
    assert "How rates were picked" in (compare.out / "report.md").read_text()


@pytest.mark.slow
def test_a_grid_of_rates_can_be_added_where_the_training_set_stays(compare, tmp_path):
    compare("--seeds", "1")
    named = others(tmp_path)
    val = ("--lr-grid", "1,2", "--val", named)
    compare("--seeds", "1", *val)
    assert len(ran(compare)) == 4 + 8  # every pick is the lower rate of a tie: no run anew
    with pytest.raises(NormdetError, match=rf"--val was '{named}' and is 'voc:val'"):
        compare("--seeds", "1", *val[:3], "voc:val")


def others(folder):
    """A dataset of one image of its own."""
    images = folder / "others"
    images.mkdir()
    Image.new("RGB", (32, 32)).save(images / "one.png")
    record = {"id": 1, "file_name": "one.png", "width": 32, "height": 32}
    content = {"images": [record], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    (folder / "others.json").write_text(json.dumps(content))
    return f"coco:{folder / 'others.json'}:{images}"


@pytest.mark.parametrize(
    "words, said",
    [
        (("DATASETS.TRAIN", "('quickstart:test',)"), "quickstart:test.*reported.*unseen"),
        (("--lr-grid", "1,2", "--val", "quickstart:train"), "quickstart:train.*rates are picked"),
    ],
)
def test_images_that_were_trained_on_are_refused_as_test_images(compare, words, said):
    with pytest.raises(NormdetError, match=said):
        compare("--seeds", "1", *words)
    assert not ran(compare)


def test_the_metric_that_is_asked_for_picks_the_rates():
    runs = [
        Run(name="a", lr_factor=1.0, scores={"box_AP": 1.0, "mask_AP": 2.0}),
        Run(name="b", lr_factor=2.0, scores={"box_AP": 2.0, "mask_AP": 1.0}),
    ]
    assert comparison.best_factor(runs) == 1.0
    assert comparison.best_factor(runs, "box_AP") == 2.0


@pytest.mark.slow
def test_two_commands_do_not_share_a_folder(compare):
    compare.go.unlink()
    first = threading.Thread(target=compare, args=("--seeds", "1"))
    try:
        first.start()
        deadline = time.monotonic() + 30
        while not ran(compare):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(NormdetError, match="another `normdet compare` is at work"):
            compare("--seeds", "1")
    finally:
        compare.go.touch()
        first.join(60)


@pytest.mark.slow
def test_a_signal_stops_it_and_the_same_command_goes_on(compare):
    compare.go.unlink()

    def stop():
        deadline = time.monotonic() + 30
        while not ran(compare) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="stopped by SIGTERM; 0 runs are done.*same command"):
        compare("--seeds", "1")
    thread.join()
    compare.go.touch()
    assert compare("--seeds", "1") == 0 and len(table(compare)) == 4


@pytest.mark.parametrize(
    "words, said",
    [
        (("--baseline", "LN"), "--baseline 'LN' is none"),
        (("--lr-grid", "1,2", "--val", "quickstart:test"), "never picks a rate"),
        (("DATASETS.TEST", "('a', 'b')"), "names 2 datasets"),
        (("--seeds", "0"), "--seeds 0: at least one"),
        (("--report-only",), "no run has a result yet"),
    ],
)
def test_mistakes_are_named_before_anything_runs(compare, words, said):
    with pytest.raises(NormdetError, match=said):
        compare(*words)
    assert not ran(compare)


@pytest.mark.parametrize("words", [("--batch-sizes", "0"), ("--lr-grid", "inf")])
def test_numbers_out_of_range(compare, words, capsys):
    with pytest.raises(SystemExit):
        compare(*words)
    assert words[0] in capsys.readouterr().err


def test_a_dry_run_says_what_would_run(compare, capsys):
    assert compare("--dry-run", "--seeds", "2") == 0
    out = capsys.readouterr().out
    assert "BN, 1 image, seed 1: 800 iterations, rate 0.01" in out
    assert "0 runs to pick rates and 8 to report" in out and not compare.out.exists()


def test_without_scipy_it_says_so_at_once(compare, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(NormdetError, match=r"pip install 'normdet\[lab\]'"):
        compare()


TINY = (
    "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "5", "SOLVER.WARMUP_ITERS", "1",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.EVAL_PERIOD", "0",
)  # fmt: skip


@pytest.mark.slow
def test_two_norms_for_real(tmp_path, quickstart_data):
    """They are trained, killed, resumed and reported; with a very high rate one diverges."""
    out = tmp_path / "out"
    words = ["compare", "--config-file", "quickstart/base.yaml", "--norms", "GN,FRN+TLU"]
    words += ["--batch-sizes", "2", "--jobs", "2", "--threads", "1", "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, "-m", "normdet", *words, "--seeds", "2", *TINY],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 400
    while not list(out.glob("cells/*/run.json")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    started.kill()
    started.wait()
    kept = {file: file.read_bytes() for file in out.glob("cells/*/run.json")}
    assert 1 <= len(kept) < 4

    wild = ["--variant", "wild=GN SOLVER.BASE_LR 1e15 SOLVER.CLIP_GRADIENTS.ENABLED False"]
    assert cli.main([*words, "--seeds", "2", *wild, *TINY]) == 0
    assert all(file.read_bytes() == before for file, before in kept.items())
    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 4 + ["diverged"] * 2
    for row in rows[:4]:
        assert row["mask_AP"] and row["images_seen"] == "10" and float(row["step_s"]) > 0
        assert int(row["memory_mb"]) > 100 and "detectron2" in row["versions"]
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4 and "predictions of two norms" in report
    assert not list(out.glob("cells/*/model_*.pth"))
    text = (out / "report.md").read_text()
    assert "| wild | 2 of 2 diverged |" in text and "wild (2 of 2 diverged) |" in text
