"""What is shown while runs are under way."""

import io
import re

import pytest
from rich.console import Console

from normdet.lab.compare.cell import Task
from normdet.lab.compare.display import Display, duration, outcome, progress
from normdet.lab.compare.runs import Run


def task(folder, norm, size=1, iterations=100):
    run = Run(name=folder.name, norm=norm, batch_size=size, iterations=iterations)
    return Task(f"{norm}, seed 1", folder, ("true",), run)


@pytest.mark.parametrize(
    "seconds, text", [(1, "1 min"), (3540, "59 min"), (3600, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "row, short, long",
    [
        ({"status": "done", "box_AP": 41.25, "mask_AP": 40.0}, "40.0", "mask AP 40.0, box AP 41.2"),
        ({"status": "diverged", "note": "why"}, "div", "diverged (why)"),
        ({"status": "crashed", "note": "why"}, "crash", "crashed (why)"),
    ],
)
def test_outcomes(row, short, long):
    run = Run.from_row({"run": "a", **row})
    assert outcome(run, short=True) == short and outcome(run) == long


@pytest.mark.parametrize(
    "text, share",
    [
        ("", 0.0),
        ('{"iteration": 19}\n{"iteration": 49}\n', 0.5),
        ('{"iteration": 19}\n{"iter', 0.0),  # cut short while it is written
        ('{"iteration": 100}\n', 1.0),
        ("[]\n", 0.0),
    ],
)
def test_progress_is_read_from_the_metrics(tmp_path, text, share):
    (tmp_path / "metrics.json").write_text(text)
    assert progress(task(tmp_path, "GN")) == share
    assert progress(task(tmp_path / "none", "GN")) == 0.0


def test_a_terminal_gets_a_table_with_every_run(tmp_path):
    out = io.StringIO()
    tasks = [
        task(tmp_path / f"{norm}{size}", norm, size) for norm in ("GN", "BN") for size in (1, 2)
    ]
    tasks[1].folder.mkdir()
    (tasks[1].folder / "metrics.json").write_text('{"iteration": 49}\n')
    with Display(Console(file=out, force_terminal=True, width=100), 4) as display:
        display.add(tasks, {"GN1": Run(name="GN1", status="done", scores={"box_AP": 33.0})})
        display.ended(tasks[2], Run(name="BN1", status="diverged", note="inf"))
        display.refresh([tasks[1]])
    text = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", out.getvalue())
    assert "2 of 4 runs, about 1 min left" in text
    assert re.search(r"GN\s+│\s+33.0\s+│\s+50%", text) and re.search(r"BN\s+│\s+div\s+│\s+·", text)


def test_elsewhere_there_are_plain_lines(tmp_path):
    out = io.StringIO()
    one = task(tmp_path / "a", "[b]GN[/b]")
    with Display(Console(file=out, width=20), 1) as display:
        display.add([one], {})
        display.refresh([one])
        display.ended(one, Run(name="a", status="crashed", note="a long reason"))
    line = f"[1/1] [b]GN[/b], seed 1: crashed (a long reason); its log is {one.log}\n"
    assert out.getvalue() == line
