"""Reading back a run's curves."""

import json

import pytest

from normdet.engine.history import read_history, steps_logged
from normdet.errors import NormdetError


def test_steps_gone_over_again_count_once_and_the_last_evaluation_with_the_last_step(tmp_path):
    file = tmp_path / "metrics.json"
    lines = [(19, "total_loss", 3.0), (39, "total_loss", 2.0), (40, "bbox/AP", 5.0)]
    lines += [(39, "total_loss", 1.0), (19, "time", 0.5)]
    file.write_text("".join(json.dumps({"iteration": i, k: v}) + "\n" for i, k, v in lines))
    assert read_history(file) == [
        {"iteration": 19, "total_loss": 3.0, "time": 0.5},
        {"iteration": 39, "total_loss": 1.0, "bbox/AP": 5.0},
    ]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    file = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "total_loss": 1.0}) for i in (19, 39, 59)]
    # A resumed run goes on in the line that was cut.
    file.write_text("\n".join([lines[0], lines[1][:9] + lines[1], lines[2], lines[2][:12]]))
    assert [entry["iteration"] for entry in read_history(file)] == [19, 59]


@pytest.mark.parametrize("text", ["no json", "[1]", '{"total_loss": 1}', '{"iteration": "x"}'])
def test_a_file_that_is_no_history_is_refused(tmp_path, text):
    file = tmp_path / "metrics.json"
    with pytest.raises(NormdetError, match="cannot be read"):
        read_history(file)
    file.write_text('{"iteration": 1, "total_loss": 1}\n' + text)
    with pytest.raises(NormdetError, match="not a metrics file"):
        read_history(file)


def test_the_steps_so_far_are_those_of_the_last_whole_line(tmp_path):
    file = tmp_path / "metrics.json"
    assert steps_logged(file) == 0
    for text, steps in [("", 0), ('{"iteration": 19}\n{"iteration": 49}\n', 50), ("[]\n", 0)]:
        file.write_text(text)
        assert steps_logged(file) == steps
