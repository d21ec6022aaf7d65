"""What comes out is read by detectron2, and trains."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import build_model

from normdet.cli import main
from normdet.config import config_file, load_config
from normdet.data import load_coco
from normdet.weights.checks import describe
from tests.prepare.make import blobs, write_bowl, write_segmentation, write_series


def test_detectron2_and_we_read_the_same(tmp_path):
    write_bowl(tmp_path / "in", [blobs(seed) for seed in range(3)])
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "in"), "--out", str(out)]) == 0
    theirs = load_coco_json(str(out / "train.json"), str(out / "images"), "prepared")
    ours = load_coco(out / "train.json", out / "images")
    assert len(theirs) == len(ours.records) == 2 and ours.json_file is not None
    for one, other in zip(theirs, ours.records, strict=True):
        assert one["file_name"] == other["file_name"]
        assert [o["bbox"] for o in one["annotations"]] == [o["bbox"] for o in other["annotations"]]


@pytest.mark.slow
def test_a_moved_folder_of_16_bit_images_trains_from_weights_for_8(tmp_path, monkeypatch):
    source, made, moved = tmp_path / "in", tmp_path / "made", tmp_path / "moved"
    for seed in range(4):
        case = blobs(seed)
        (source / "images").mkdir(parents=True, exist_ok=True)
        (source / "labels").mkdir(exist_ok=True)
        tifffile.imwrite(source / "images" / f"{seed}.tif", case.pixels * 16)
        tifffile.imwrite(source / "labels" / f"{seed}.tif", case.labels)
    assert main(["prepare", str(source), "--out", str(made), "--window", "none"]) == 0
    made.rename(moved)
    cfg = load_config(moved / "train.yaml")
    # The first convolution sees what it was trained on: values as varied as ImageNet's.
    assert cfg.INPUT.IMAGE_STD / np.mean(cfg.MODEL.PIXEL_STD) == pytest.approx(57, rel=1e-3)
    backbone = load_config("medical/Base-R_50-FPN.yaml", ["MODEL.DEVICE", "cpu"])
    backbone.MODEL.WEIGHTS = ""
    weights = tmp_path / "weights.pth"
    torch.save(
        {"model": build_model(backbone).state_dict(), "normdet": describe(backbone)}, weights
    )
    options = "SOLVER.MAX_ITER 1 TEST.EVAL_PERIOD 0 MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 64".split()
    options += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.WEIGHTS", str(weights)]
    options += ["OUTPUT_DIR", str(tmp_path / "run"), "DATASETS.ROOT", str(moved)]
    train = ["train", "--config-file", str(moved / "train.yaml"), *options]
    assert main(train) == 0
    shutil.rmtree(tmp_path / "run")
    assert main([*train, "INPUT.IMAGE_STD", "57.0"]) == 2


@pytest.mark.slow
def test_two_iterations_and_an_evaluation_on_values_of_any_range(tmp_path):
    cases = [blobs(seed) for seed in range(4)]
    source, out, run = tmp_path / "in", tmp_path / "out", tmp_path / "run"
    for number in range(2):
        series = f"1.2.3.{number}"
        slices = write_series(source / series, cases, patient=f"P{number}", series=series)
        write_segmentation(source / series / "seg.dcm", slices, cases)
    command = ["prepare", str(source), "--out", str(out), "--window", "none", "--neighbours", "1"]
    assert main([*command, "--val", "0.5"]) == 0
    config = tmp_path / "config.yaml"
    bases = [config_file("quickstart/gn.yaml"), str(out / "dataset.yaml")]
    config.write_text(f"_BASE_: {json.dumps(bases)}\n")
    options = "SOLVER.MAX_ITER 2 TEST.EVAL_PERIOD 0 MODEL.DEVICE cpu INPUT.MIN_SIZE_TEST 96".split()
    options += ["INPUT.MIN_SIZE_TRAIN", "(96,)", "OUTPUT_DIR", str(run)]
    assert main(["train", "--config-file", str(config), *options]) == 0
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"bbox", "segm"}
