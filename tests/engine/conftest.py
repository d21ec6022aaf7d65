"""A detector and a dataset small enough to train within a test."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from normdet.config import load_config

TINY = {
    "MODEL": {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "DEVICE": "cpu",
        "WEIGHTS": "",
        "MASK_ON": True,
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 0},
        "RESNETS": {
            "DEPTH": 50,
            "STEM_OUT_CHANNELS": 16,
            "RES2_OUT_CHANNELS": 16,
            "WIDTH_PER_GROUP": 8,
            "OUT_FEATURES": ["res4", "res5"],
            "NORM": "GN",
        },
        "FPN": {"IN_FEATURES": ["res4", "res5"], "OUT_CHANNELS": 32, "NORM": "GN"},
        "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64]], "ASPECT_RATIOS": [[1.0]]},
        "RPN": {
            "IN_FEATURES": ["p4", "p5", "p6"],
            "PRE_NMS_TOPK_TRAIN": 50,
            "PRE_NMS_TOPK_TEST": 20,
            "POST_NMS_TOPK_TRAIN": 20,
            "POST_NMS_TOPK_TEST": 10,
        },
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": ["p4", "p5"],
            "NUM_CLASSES": 1,
            "BATCH_SIZE_PER_IMAGE": 16,
        },
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "NUM_FC": 1,
            "FC_DIM": 32,
            "POOLER_RESOLUTION": 4,
        },
        "ROI_MASK_HEAD": {
            "NAME": "MaskRCNNConvUpsampleHead",
            "NUM_CONV": 1,
            "CONV_DIM": 16,
            "POOLER_RESOLUTION": 4,
        },
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": [64, 80],
        "MAX_SIZE_TRAIN": 160,
        "MIN_SIZE_TEST": 64,
        "MAX_SIZE_TEST": 160,
    },
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "BASE_LR": 0.01, "WARMUP_ITERS": 2},
    "SEED": 1,
    "VERSION": 2,
}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Four images, two wide and two tall, with three bright squares each, as COCO."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 5):
        width, height = (96, 64) if image_id % 2 else (64, 96)
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for x, y in ((4, 4), (34, 8), (10, 36)):
            pixels[y : y + 20, x : x + 20] += 150
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x, y, 20, 20],
                    "area": 400,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]],
                }
            )
        name = f"{image_id}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square"}],
    }
    (folder / "squares.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_data):
    """The path of a YAML that trains the detector on the four images."""
    datasets = {
        "ROOT": str(tiny_data),
        "TRAIN": ["coco:squares.json:images"],
        "TEST": ["coco:squares.json:images"],
    }
    path = tiny_data / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "DATASETS": datasets}))
    return path


@pytest.fixture
def tiny_cfg(tiny_config, tmp_path):
    """A function from config keys and values to the detector's config."""

    def make(*opts, norm=None):
        return load_config(tiny_config, ["OUTPUT_DIR", str(tmp_path / "out"), *opts], norm)

    return make
