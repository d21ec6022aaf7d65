"""The two norms and the images that a report shows."""

import json

import numpy as np
import pytest
from PIL import Image

from normdet.lab.compare import pictures
from normdet.lab.compare.analysis import Group
from normdet.lab.compare.runs import Run


def test_the_pair_is_furthest_apart_at_the_smallest_batch_size_with_two():
    groups = [
        Group("A", 1, {1: 10.0}), Group("A", 2, {1: 10.0}), Group("B", 2, {1: 30.0}),
        Group("C", 2, {1: 11.0}), Group("D", 2, {2: 99.0}), Group("B", 4, {1: 90.0}),
    ]  # fmt: skip
    first, second = pictures.far_apart(groups)
    assert (first.norm, second.norm, first.batch_size) == ("A", "B", 2)
    assert pictures.far_apart(groups[:1]) is None


@pytest.fixture
def runs(tmp_path):
    """Five images with one object each; GN finds it in all, BN in all but the fourth."""
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(tmp_path / "a.png")
    records = [
        {"file_name": str(tmp_path / "a.png"), "height": 20, "width": 30, "image_id": i,
         "annotations": [{"bbox": [2, 2, 12, 12], "bbox_mode": 0, "category_id": 0}]}
        for i in range(1, 6)
    ]  # fmt: skip
    folders = {"GN": tmp_path / "gn", "BN": tmp_path / "bn"}
    for name, folder in folders.items():
        (folder / "inference").mkdir(parents=True)
        found = [
            {"image_id": i, "bbox": [2, 2, 10, 10], "score": 0.9, "category_id": 1}
            for i in range(1, 6)
            if (name, i) != ("BN", 4)
        ]
        (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    return folders, records


def test_the_images_that_differ_most_come_first(runs, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures.figures, "draw_scenes", lambda scenes, *_: drawn.extend(scenes))
    assert pictures.draw_differences(*runs, tmp_path / "p.png")
    assert len(drawn) == 3
    assert [len(scene.predicted["BN"]) for scene in drawn] == [0, 1, 1]


def test_missing_images_and_predictions_are_not_drawn(runs, tmp_path):
    folders, records = runs
    assert not pictures.draw_differences(folders, [], tmp_path / "p.png")
    assert not pictures.draw_differences(
        {**folders, "BN": tmp_path / "none"}, records, tmp_path / "p.png"
    )


def test_a_curve_counts_images(tmp_path):
    run = Run(name="GN-b4-s1", norm="GN", batch_size=4)
    assert pictures.curve(tmp_path, run, "mask_AP") is None
    lines = [{"iteration": 19, "total_loss": 2.0}, {"iteration": 20, "segm/AP": 5.0}]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = pictures.curve(tmp_path, run, "mask_AP")
    assert list(curve.loss) == [(80, 2.0)] and list(curve.score) == [(80, 5.0)]
