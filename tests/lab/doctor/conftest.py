"""A small detector, images, and weights whose statistics are those of the images."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from normdet.config import load_config
from normdet.data.images import Images, find_images
from normdet.lab.doctor.command import body
from normdet.weights import save_file

SMALL = {
    "MODEL": {
        "META_ARCHITECTURE": "RetinaNet",
        "DEVICE": "cpu",
        "WEIGHTS": "",
        "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone", "FREEZE_AT": 0},
        "RESNETS": {
            "DEPTH": 50,
            "STEM_OUT_CHANNELS": 8,
            "RES2_OUT_CHANNELS": 16,
            "WIDTH_PER_GROUP": 8,
            "OUT_FEATURES": ["res3", "res4", "res5"],
            "NORM": "BN",
        },
        "FPN": {"IN_FEATURES": ["res3", "res4", "res5"], "OUT_CHANNELS": 16},
        "RETINANET": {"NUM_CLASSES": 1},
    },
    "INPUT": {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 128},
    "VERSION": 2,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight pictures, one of them below another folder, and a text."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "deeper").mkdir()
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 255, (70 + index, 90, 3), dtype=np.uint8)
        where = folder / "deeper" if index == 7 else folder
        Image.fromarray(pixels).save(where / f"ä {index}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def weights(config, folder, tmp_path_factory):
    """A model that has passed over the images in training, all of them in one batch."""
    from detectron2.modeling import build_model

    cfg = load_config(config)
    torch.manual_seed(0)
    model = build_model(cfg)
    for norm in model.modules():
        if hasattr(norm, "momentum"):
            norm.momentum = None  # the plain average over all batches
    batch = [batch[0] for batch in Images(find_images([folder]), cfg, 32)]
    model.train()
    with torch.no_grad():
        for _ in range(2):
            body(model)(batch)
    path = tmp_path_factory.mktemp("weights") / "trained.pth"
    save_file({"model": model.state_dict()}, path)
    return path
