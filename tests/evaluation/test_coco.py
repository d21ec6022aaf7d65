"""COCO AP of known predictions, on every kind of dataset."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

import normdet
from normdet.data import register_datasets
from normdet.engine.summary import jsonable
from normdet.errors import NormdetError
from normdet.evaluation import build_evaluator


@pytest.fixture
def cfg(tmp_path):
    """A one-class detector whose output goes to a fresh folder."""
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.DATASETS.TRAIN, cfg.DATASETS.ROOT = (), str(tmp_path)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    known = DatasetCatalog.list()
    yield cfg
    for name in set(DatasetCatalog.list()) - set(known):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def _coco(tmp_path, boxes, name="truth.json", **extra):
    """Write one image with `boxes` (XYWH) and return the dataset's text."""
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 9, "bbox": box, **extra}
            for i, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 9, "name": "cell"}],
    }
    (tmp_path / name).write_text(json.dumps(content))
    return f"coco:{name}:images"


def _measure(cfg, text, boxes):
    """AP of predicting `boxes` (XYXY) with falling scores on the first image."""
    cfg.DATASETS.TEST = (text,)
    register_datasets(cfg)
    record = DatasetCatalog.get(text)[0]
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(boxes))
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    evaluator = build_evaluator(cfg, text)
    evaluator.reset()
    evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


TRUTH = [[5, 5, 20, 20], [40, 10, 20, 30]]
FOUND = [[5, 5, 25, 25], [40, 10, 60, 40]]


@pytest.mark.parametrize("extra", [{}, {"area": 100, "iscrowd": 0}])
def test_perfect_boxes_have_full_ap(cfg, tmp_path, extra):
    assert _measure(cfg, _coco(tmp_path, TRUTH, **extra), FOUND)["bbox"]["AP"] == pytest.approx(100)


def test_half_of_the_boxes_have_half_the_recall(cfg, tmp_path):
    # 51 of COCO's 101 recall points lie at or below one half.
    text = _coco(tmp_path, TRUTH)
    assert _measure(cfg, text, FOUND[:1])["bbox"]["AP"] == pytest.approx(100 * 51 / 101)


def test_a_box_left_out_is_not_missed(cfg, tmp_path):
    text = _coco(tmp_path, [*TRUTH, [3, 3, 0, 7]], area=100, iscrowd=0)
    assert _measure(cfg, text, FOUND)["bbox"]["AP"] == pytest.approx(100)


def test_a_changed_file_is_measured_as_it_is_now(cfg, tmp_path):
    assert _measure(cfg, _coco(tmp_path, TRUTH[:1]), FOUND[:1])["bbox"]["AP"] == pytest.approx(100)
    changed = _measure(cfg, _coco(tmp_path, TRUTH), FOUND[:1])
    assert changed["bbox"]["AP"] == pytest.approx(100 * 51 / 101)


def test_two_datasets_of_like_names_are_kept_apart(cfg, tmp_path):
    names = ("truth-x.json", "truth.x.json")
    texts = [_coco(tmp_path, TRUTH[:n], name) for n, name in enumerate(names, start=1)]
    aps = [_measure(cfg, text, FOUND[:1])["bbox"]["AP"] for text in texts]
    assert aps == [pytest.approx(100), pytest.approx(100 * 51 / 101)]


def test_more_than_a_hundred_objects_count_where_the_model_may_find_them(cfg, tmp_path):
    truth = [[x, y, 4, 4] for y in range(0, 60, 6) for x in range(0, 78, 6)]
    found = [[x, y, x + 4, y + 4] for x, y, _, _ in truth]
    text = _coco(tmp_path, truth)
    assert _measure(cfg, text, found)["bbox"]["AP"] < 80
    cfg.TEST.DETECTIONS_PER_IMAGE = 300
    assert _measure(cfg, text, found)["bbox"]["AP"] == pytest.approx(100)


def test_nothing_found_is_an_ap_of_zero_in_every_task(cfg, tmp_path):
    cfg.MODEL.MASK_ON = True
    cfg.DATASETS.MAX_BOX_FAULTS = 1.0  # one mask serves for all boxes
    box = [5, 5, 25, 5, 25, 25, 5, 25]
    text = _coco(tmp_path, TRUTH, area=400, iscrowd=0, segmentation=[box])
    for metrics in (result := _measure(cfg, text, [])).values():
        assert metrics["AP"] == metrics["AP50"] == metrics["APs"] == 0
        assert math.isnan(metrics["APl"])  # there is no large object to find
    assert set(result) == {"bbox", "segm"}
    json.dumps(jsonable(result), allow_nan=False)


def test_without_objects_there_is_no_ap(cfg, tmp_path):
    assert math.isnan(_measure(cfg, _coco(tmp_path, []), [])["bbox"]["AP"])


def test_blood_cells_are_measured_with_their_classes(cfg, real_data):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.DATASETS.ROOT, cfg.DATASETS.TEST = str(real_data / "bccd"), ("voc:val",)
    register_datasets(cfg)
    evaluator = build_evaluator(cfg, "voc:val")
    evaluator.reset()
    for record in DatasetCatalog.get("voc:val"):
        objects = record["annotations"]
        assert all(obj["bbox_mode"] == BoxMode.XYXY_ABS for obj in objects)
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor([o["bbox"] for o in objects]).reshape(-1, 4))
        instances.scores = torch.ones(len(objects))
        instances.pred_classes = torch.tensor([o["category_id"] for o in objects])
        evaluator.process([record], [{"instances": instances}])
    result = evaluator.evaluate()["bbox"]
    assert result["AP"] == pytest.approx(100)
    assert {"AP-RBC", "AP-WBC", "AP-Platelets"} <= set(result)


def test_another_kind_of_dataset_is_refused(cfg):
    DatasetCatalog.register("streets", list)
    MetadataCatalog.get("streets").evaluator_type = "cityscapes_instance"
    with pytest.raises(NormdetError, match="evaluated as 'cityscapes_instance'"):
        build_evaluator(cfg, "streets")
