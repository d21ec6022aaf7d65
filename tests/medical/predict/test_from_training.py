"""From a run's folder alone: config, classes and window are found beside the weights."""

import json

import pytest
import tifffile

from normdet import cli
from normdet.data import load_coco

SHORT = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
SHORT += ["INPUT.MIN_SIZE_TEST", "96", "MODEL.DEVICE", "cpu", "DATASETS.TEST", "()"]


@pytest.mark.slow
@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
def test_the_folder_of_a_run_suffices(grey, quickstart_data, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    opts = [*SHORT, "OUTPUT_DIR", str(run)]
    if grey:
        opts += ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[40.0]", "MODEL.PIXEL_STD", "[40.0]"]
    assert cli.main(["train", "--config-file", "quickstart/gn.yaml", *opts]) == 0
    record = load_coco(quickstart_data / "test.json", quickstart_data / "images").records[0]
    command = ["predict", record["file_name"], "--weights", str(run / "model_final.pth"),
               "--out", str(out), "--score-threshold", "0.01", "--tile", "128", "--overlap", "32"]
    assert cli.main(command) == 0
    content = json.loads((out / "images.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "nucleus"}]
    (label,) = (out / "labels").iterdir()
    assert tifffile.imread(label).shape == (record["height"], record["width"])
    assert cli.main(command) == 0
    assert "(1 of them before)" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_of_a_backbone_are_no_detector(quickstart_data, tmp_path, capsys):
    import torch
    from detectron2.modeling import build_model

    from normdet.config import load_config

    state = build_model(load_config("quickstart/gn.yaml", ["MODEL.DEVICE", "cpu"])).state_dict()
    file = tmp_path / "backbone.pth"
    torch.save({"model": {k: v for k, v in state.items() if k.startswith("backbone")}}, file)
    command = ["predict", str(quickstart_data / "images"), "--weights", str(file),
               "--config-file", "quickstart/gn.yaml", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "it is not a trained detector of this config" in capsys.readouterr().err
