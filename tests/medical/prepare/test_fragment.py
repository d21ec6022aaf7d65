"""The config that prepare writes loads and describes the data."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from normdet.cli import main
from normdet.config import load_config
from normdet.medical.prepare.fragment import anchor_sizes
from tests.medical.prepare.make import blobs, write_bowl


def test_anchors_start_at_the_smallest_common_object():
    assert anchor_sizes({"5%": 9}, 2.0) == [16, 32, 64, 128, 256]
    assert anchor_sizes({"5%": 300}, 1.0)[0] == 32 and anchor_sizes({"5%": 1}, 1.0)[0] == 8


def test_the_config_loads_and_describes_the_data(tmp_path):
    write_bowl(tmp_path / "in", [blobs(seed, size=96 + 32 * seed) for seed in range(4)])
    out = tmp_path / "out mit Leerzeichen"
    assert main(["prepare", str(tmp_path / "in"), "--out", str(out), "--val", "0.25"]) == 0
    cfg = load_config(out / "train.yaml")
    fingerprint = json.loads((out / "fingerprint.json").read_text())
    assert cfg.DATASETS.ROOT == str(out) and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1
    assert cfg.DATASETS.TRAIN == ("coco:train.json:images",) or cfg.DATASETS.TRAIN == [
        "coco:train.json:images"
    ]
    assert list(cfg.MODEL.PIXEL_MEAN) == fingerprint["pixel_mean"]
    assert cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "bitmask"
    assert yaml.safe_load((out / "dataset.yaml").read_text())["TEST"]["DETECTIONS_PER_IMAGE"] == 100
    content = json.loads((out / "train.json").read_text())
    values = [np.asarray(Image.open(out / "images" / i["file_name"])) for i in content["images"]]
    whole = np.concatenate([value.reshape(-1, 3) for value in values])
    assert fingerprint["pixel_mean"] == pytest.approx(whole.mean(0)[::-1], abs=1e-3)
    sheet = Image.open(out / "contact_sheet.png")
    assert sheet.width > 900 and len(np.unique(np.asarray(sheet))) > 20
