"""The report of invented runs: it claims what they support, and no more."""

import re
from dataclasses import replace

import pytest

from normdet import NormdetError
from normdet.lab.compare.plan import Plan, parse_arms
from normdet.lab.compare.report import write_report
from normdet.lab.compare.runs import read_table, write_table
from tests.lab.compare.synthetic import run_of, runs


def report(tmp_path, made, **options):
    write_table(made, tmp_path / "runs.csv")
    write_report(tmp_path, read_table(tmp_path / "runs.csv"), **{"baseline": "FrozenBN", **options})
    return (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()


def line(text, *starts):
    """The first table row that starts with these cells."""
    start = f"| {' | '.join(starts)} |"
    return next(row for row in text.splitlines() if row.startswith(start))


def test_runs_csv_reads_back_as_it_was_written(tmp_path):
    made = runs()
    write_table(made, tmp_path / "runs.csv")
    read = read_table(tmp_path / "runs.csv")
    assert [replace(run, scores={}) for run in read] == [replace(run, scores={}) for run in made]
    assert read[0].score("mask_AP") == pytest.approx(made[0].score("mask_AP"), abs=5e-4)
    assert read[0].gpu_memory_mb is None and read[0].score("mask_APs") is None


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\x00\xff"])
def test_a_table_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "runs.csv").write_text(text, encoding="latin1")
    with pytest.raises(NormdetError, match=r"runs\.csv"):
        read_table(tmp_path / "runs.csv")


def test_the_report_claims_what_the_numbers_support(tmp_path):
    text, html = report(tmp_path, runs(seeds=5))
    assert "5 norms at 1, 2, 4 and 8 images a step, 5 seeds: 98 of 100 runs ended well" in text
    assert "1 of 5 diverged" in line(text, "BN")
    assert re.search(r"\| 40\.\d ± \d\.\d \(n = 5\) \|", line(text, "FrozenBN"))
    assert "(n = 4)" in line(text, "GN+WS")
    assert line(text, "BN", "2").endswith("| worse |")
    # With a seed that diverged there is nothing to compare.
    assert not re.search(r"\| BN \| 1 \| [-+]", text)
    assert "killed by SIGKILL" in text and "the loss is not finite (loss\\_cls = nan)" in text
    assert "From random weights FrozenBN has the statistics of no data" in text
    assert html.count("data:image/png;base64,") == 2 and not re.search(
        r"<script|<link|src=\"h", html
    )
    for name in re.findall(r"\]\((\S+\.png)\)", text):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_every_mean_and_difference_stands_with_its_interval_or_says_there_is_none(tmp_path):
    text, _ = report(tmp_path, runs(seeds=1))
    assert "With one seed there are no intervals and no tests" in text
    assert "not at all: one seed" in text and "no interval" in line(text, "GN")
    assert line(text, "GN", "1").endswith("| none | 1 | - | - | not tested |")
    assert "±" not in text
    text, _ = report(tmp_path, runs(seeds=2))
    assert "12.7 standard errors" in text


def test_the_report_states_what_three_seeds_can_show(tmp_path):
    text, _ = report(tmp_path, runs())
    assert line(text, "BN", "2").endswith("| not told apart |")
    assert "With 3 seeds and 16 rows planned the first difference to be told apart must be" in text


def test_many_seeds_decide(tmp_path):
    text, _ = report(tmp_path, runs(seeds=8, norms=("FrozenBN", "GN"), sizes=(2,)))
    assert line(text, "GN", "2").endswith(r"| \< 0.001 | \< 0.001 | better |")
    assert "ahead of FrozenBN (p \\< 0.05)" in line(text, "2", "GN")


def test_norms_left_out_and_not_distinguished_are_named(tmp_path):
    text, _ = report(tmp_path, runs())
    one, four = line(text, "1"), line(text, "4")
    assert re.search(r"FrozenBN \([-+]\d\.\d to [-+]\d\.\d\)", one)
    assert one.endswith("| BN (1 of 3 diverged) |")
    assert four.endswith("| GN+WS (1 of 3 crashed) |")
    assert ", 1 of 3 crashed" in line(text, "GN+WS")


def test_planned_runs_without_results_are_named_and_counted(tmp_path):
    made = [run_of(n, 2, s, 40 + ap + 0.1 * s) for n, ap in (("BN", 0), ("GN", 9)) for s in (1, 2)]
    plan = Plan(
        "quickstart/base.yaml", (), parse_arms("BN,GN,IN", [], []), (1, 2), (1, 2), (1.0,), (), "",
        "quickstart:test",
    )  # fmt: skip
    text, _ = report(tmp_path, made, baseline="BN", plan=plan)
    assert "4 of 12 runs ended well" in text
    assert line(text, "IN") == "| IN | not run | not run |"


def test_pictures_of_missing_runs_stay_with_a_note(tmp_path):
    made = runs(norms=("FrozenBN", "GN"), sizes=(2,))
    text, html = report(tmp_path, made)
    assert "Training" not in text and html.count("data:image/png;base64,") == 2
    (tmp_path / "figures" / "training.png").write_bytes((tmp_path / "figures/ap.png").read_bytes())
    (tmp_path / "cells" / made[0].name).mkdir(parents=True)  # one of several left its log
    entry = '{"iteration": 9, "total_loss": 1.0}'
    (tmp_path / "cells" / made[0].name / "metrics.json").write_text(entry + "\n")
    text, _ = report(tmp_path, made)
    assert "Drawn by an earlier report" in text.split("## Training")[1].split("##")[0]
    assert "Drawn by an earlier report" not in text.split("## Training")[0]


def test_a_grid_that_was_too_narrow_is_reported(tmp_path):
    tuning = [
        run_of("GN", 1, 0, 30.0 + factor, role="tuning", lr_factor=factor)
        for factor in (0.5, 1.0, 2.0)
    ]
    for picked, said in ((2.0, True), (1.0, False)):
        made = [run_of("GN", 1, seed, 40.0 + seed, lr_factor=picked) for seed in (1, 2)]
        text, _ = report(tmp_path, tuning + made, baseline="GN")
        assert ("1 of 1 picks lie at an end of the grid" in text) == said


def test_rates_are_shown_with_what_they_were_picked_on(tmp_path):
    tuning = [
        run_of("GN", 1, 0, ap, role="tuning", lr_factor=factor, dataset="split:val:0.2:x",
               status="done" if ap else "diverged")
        for factor, ap in ((0.5, 30.0), (1.0, 35.0), (2.0, 0.0))
    ]  # fmt: skip
    text, _ = report(tmp_path, tuning + runs(norms=("FrozenBN", "GN"), sizes=(1,)))
    assert line(text, "GN", "1", "30.0") == "| GN | 1 | 30.0 | 35.0 | diverged | x1 |"
    assert "split:val:0.2:x with a seed that is not reported" in text


def test_a_name_is_text_in_both(tmp_path):
    made = [run_of("<b>|*GN*", 1, seed, 40.0 + seed) for seed in (1, 2)]
    text, html = report(tmp_path, made, baseline="<b>|*GN*")
    assert "&lt;b&gt;|*GN*" in html and "<b>" not in html
    assert "\\<b\\>\\|\\*GN\\*" in text
    assert "None can be given" in text and "nothing to compare it with" in text


def test_nothing_but_diverged_runs_is_still_a_report(tmp_path):
    made = [
        run_of("BN", 1, seed, 0.0, status="diverged", mask_AP=None, box_AP=None) for seed in (1, 2)
    ]
    text, _ = report(tmp_path, made, baseline="BN")
    assert "0 of 2 runs ended well" in text and "2 of 2 diverged" in line(text, "BN")


def test_a_metric_that_was_not_measured_is_refused(tmp_path):
    with pytest.raises(NormdetError, match="keypoint_AP is in none"):
        report(tmp_path, runs(), metric="keypoint_AP")
