"""A run's page of norms, which is made from its curves alone."""

import json

import pytest

from normdet.engine.norm_page import norm_curves, write_norm_page
from normdet.errors import NormdetError

R = "backbone.bottom_up.res4."


def history(*names: str, iterations=(19, 39)) -> list[dict]:
    return [{"iteration": i, "total_loss": 1.0, **{n: i / 100 for n in names}} for i in iterations]


def test_curves_are_sorted_by_statistic_stage_and_depth():
    names = [
        "roi_heads.box_head.conv1.norm/clamped", f"{R}10.conv1.norm/clamped",
        f"{R}9.conv1.norm/clamped", f"{R}9.conv1.norm/mean_in", f"{R}9.conv1.norm/tau_mean",
        "bbox/AP", "segm/AP-square", "loss_cls", "fast_rcnn/cls_accuracy", "a.json/bbox/AP",
    ]  # fmt: skip
    curves = norm_curves(history(*names))
    assert list(curves) == ["clamped", "tau_mean", "mean_in"]
    assert list(curves["clamped"]) == ["res4", "box head"]
    assert list(curves["clamped"]["res4"]) == [f"{R}9.conv1.norm", f"{R}10.conv1.norm"]
    assert curves["tau_mean"]["res4"][f"{R}9.conv1.norm"] == [(20, 0.19), (40, 0.39)]


def test_the_page_needs_the_metrics_alone_and_shows_names_as_text(tmp_path):
    entries = history(f"{R}0.conv1.norm/clamped", "a.<b>.norm/<i>x")
    (tmp_path / "metrics.json").write_text("".join(json.dumps(e) + "\n" for e in entries))
    file = write_norm_page(tmp_path)
    text = file.read_text()
    assert file == tmp_path / "norms.html" and "data:image/png;base64," in text
    assert "<i>" not in text and "0.390" in text and "http" not in text


def test_a_run_without_curves_of_norms_is_refused(tmp_path):
    with pytest.raises(NormdetError, match="cannot be read"):
        write_norm_page(tmp_path)
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 1, "a.b/rms": "x"}\n')
    with pytest.raises(NormdetError, match="STATISTICS_PERIOD"):
        write_norm_page(tmp_path)
    (tmp_path / "metrics.json").write_text("")
    with pytest.raises(NormdetError, match="STATISTICS_PERIOD"):
        write_norm_page(tmp_path)
