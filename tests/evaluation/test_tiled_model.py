"""Evaluation in tiles: a perfect detector has AP 100 on whole images, also across seams."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image
from torch import nn

from normdet.config import load_config
from normdet.data import register_datasets
from normdet.engine import Trainer
from normdet.errors import NormdetError
from tests.medical.predict.fake import Seer


class Model(nn.Module):
    """A Seer as a module, whose one class is class 0."""

    def __init__(self):
        super().__init__()
        self.seer = Seer()

    def forward(self, inputs):
        outputs = self.seer(inputs)
        for output in outputs:
            output["instances"].pred_classes = torch.zeros_like(output["instances"].pred_classes)
        return outputs


@pytest.fixture
def cfg(tmp_path):
    image = np.zeros((210, 250), np.uint8)
    boxes = [(20, 5, 30, 200), (60, 90, 60, 12), (150, 90, 30, 30), (180, 150, 69, 50)]
    annotations = []
    for index, (x, y, w, h) in enumerate(boxes, start=1):
        image[y : y + h, x : x + w] = index * 20
        rle = mask_util.encode(np.asfortranarray(image == index * 20, dtype=np.uint8))
        annotations.append(
            {"id": index, "image_id": 1, "category_id": 5, "bbox": [x, y, w, h], "area": w * h,
             "iscrowd": 0, "segmentation": {**rle, "counts": rle["counts"].decode()}}
        )  # fmt: skip
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "one.png")
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": 210, "width": 250}],
        "categories": [{"id": 5, "name": "thing"}],
        "annotations": annotations,
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    data = "('coco:all.json:images',)"
    opts = ["DATASETS.ROOT", str(tmp_path), "DATASETS.TRAIN", data, "DATASETS.TEST", data,
            "INPUT.MIN_SIZE_TEST", 0, "INPUT.TILE", 96, "INPUT.TILE_OVERLAP", 32,
            "INPUT.TILE_STATISTICS", "own",
            "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out")]  # fmt: skip
    return load_config("quickstart/gn.yaml", opts)


def test_ap_of_whole_images_from_tiles(cfg):
    register_datasets(cfg)
    model = Model().eval()
    results = Trainer.test(cfg, model)
    assert results["segm"]["AP"] == results["bbox"]["AP"] == pytest.approx(100)
    assert all(len(call) == 1 for call in model.seer.seen) and len(model.seer.seen) == 12
    assert not model.training


def test_augmentation_at_test_time_is_refused(cfg):
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(NormdetError, match=r"TEST\.AUG"):
        Trainer.test(cfg, Model())
