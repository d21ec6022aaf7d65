"""What comes out is read by detectron2, and trains."""

import json

import pytest
from detectron2.data.datasets import load_coco_json

from normdet.cli import main
from normdet.config import config_file
from normdet.data import load_coco
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
