"""Known notices of other packages are silenced."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_start_without_notices_of_other_packages():
    code = """
import normdet, torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
cfg = get_cfg()
normdet.add_normdet_config(cfg)
cfg.MODEL.DEVICE = "cpu"
normdet.set_norm(cfg, "GN")
build_model(cfg).backbone(torch.rand(1, 3, 64, 64))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
