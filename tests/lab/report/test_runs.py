"""The predictions of a run that are drawn."""

import json

import numpy as np
from PIL import Image

from normdet.lab.report.runs import predictions, scene


def test_boxes_stand_for_masks_and_only_the_certain_are_drawn(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "inference").mkdir()
    found = [
        {"image_id": 7, "bbox": [2, 3, 10, 5], "score": score, "category_id": 1}
        for score in (0.4, 0.6, 0.9)
    ]
    file = tmp_path / "inference" / "coco_instances_results.json"
    file.write_text(json.dumps(found))
    predicted = predictions(tmp_path)
    assert [entry["score"] for entry in predicted[7]] == [0.9, 0.6, 0.4]
    record = {
        "file_name": str(tmp_path / "a.png"), "height": 20, "width": 30, "image_id": 7,
        "annotations": [
            {"bbox": [2, 3, 12, 8], "bbox_mode": 0, "category_id": 0},
            {"bbox": [0, 0, 30, 20], "bbox_mode": 0, "category_id": 0, "iscrowd": 1},
        ],
    }  # fmt: skip
    drawn = scene(record, {"GN": predicted, "none": {}})
    assert drawn.image.shape == (20, 30)
    assert drawn.truth.shape == (1, 20, 30) and drawn.truth.sum() == 50
    assert drawn.predicted["GN"].shape == (2, 20, 30)
    assert (drawn.predicted["GN"] == drawn.truth).all()
    assert drawn.predicted["none"].shape == (0, 20, 30)
