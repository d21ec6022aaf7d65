"""The fast evaluator and pycocotools give the same numbers."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

from normdet.evaluation.measure import measured
from normdet.evaluation.truth import truth_of


def _scene(task, images=40):
    """Ten objects per image in three classes, some of them crowds, and detections near them."""
    draw = np.random.default_rng(0)
    records, results = [], []
    for number in range(1, images + 1):
        objects = []
        for _ in range(10):
            (x, y), (w, h) = draw.uniform(0, 150, 2), draw.uniform(5, 110, 2)
            category = int(draw.integers(0, 3))
            entry = {
                "bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category,
                "iscrowd": int(draw.random() < 0.1),
            }  # fmt: skip
            moved = np.array([x, y, w, h]) + draw.normal(0, 5, 4)
            moved[2:] = moved[2:].clip(1)
            found = {
                "image_id": number, "category_id": category, "score": round(draw.random(), 1),
                "bbox": moved.tolist(),
            }  # fmt: skip
            if task == "segm":
                rle = rle_of([x, y, w, h])
                entry["segmentation"] = rle if entry["iscrowd"] else corners([x, y, w, h])
                found["segmentation"] = rle_of(moved)
            objects.append(entry)
            results += [found] if draw.random() < 0.9 else []
        records.append(
            {"image_id": number, "file_name": "", "height": 260, "width": 260,
             "annotations": objects}
        )  # fmt: skip
    return truth_of(records, ["a", "b", "c"]), results


def corners(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def rle_of(box):
    (rle,) = mask_util.frPyObjects(corners(box), 260, 260)
    return {**rle, "counts": rle["counts"].decode()}


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("most", [100, 5])
def test_the_fast_evaluator_gives_the_numbers_of_pycocotools(task, most):
    pytest.importorskip("faster_coco_eval")
    truth, results = _scene(task)
    fast, slow = (
        measured(truth, results, task, max_dets=(1, 10, most), fast=fast) for fast in (True, False)
    )
    assert type(fast) is not type(slow) or most != 100
    assert 0.05 < slow.stats[0] < 0.95
    np.testing.assert_allclose(fast.stats[:12], slow.stats[:12], rtol=1e-12, atol=0)
    for key in ("precision", "recall", "scores"):
        theirs = np.asarray(fast.eval[key]).reshape(slow.eval[key].shape)
        np.testing.assert_allclose(theirs, slow.eval[key], rtol=1e-12, atol=1e-15)
