"""detectron2 reads the prepared folder and trains on it."""

import json
import re

import pytest
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.modeling import build_model
from PIL import Image

from normdet.cli import main
from normdet.config import config_file, config_folder, load_config
from normdet.data import load_coco
from normdet.data.mapper import read_input
from normdet.weights import save_file
from normdet.weights.checks import describe
from tests.medical.prepare.make import blobs, write_bowl, write_segmentation, write_series


def test_detectron2_and_we_read_the_same(tmp_path):
    write_bowl(tmp_path / "in", [blobs(seed) for seed in range(3)])
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "in"), "--out", str(out)]) == 0
    theirs = load_coco_json(str(out / "train.json"), str(out / "images"), "prepared")
    ours = load_coco(out / "train.json", out / "images")
    assert len(theirs) == len(ours.records) == 2
    for one, other in zip(theirs, ours.records, strict=True):
        assert one["file_name"] == other["file_name"]
        assert [o["bbox"] for o in one["annotations"]] == [o["bbox"] for o in other["annotations"]]


SMALL = """
    SOLVER.MAX_ITER 1 TEST.EVAL_PERIOD 0 MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18
    MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.CONV_DIM 32
    MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 32 INPUT.MIN_SIZE_TRAIN (96,)
    INPUT.MIN_SIZE_TEST 96 DATALOADER.NUM_WORKERS 0
""".split()


@pytest.mark.slow
def test_the_folder_trains_where_it_was_moved_to(tmp_path, monkeypatch):
    write_bowl(tmp_path / "in", [blobs(seed) for seed in range(3)])
    out, moved, run = tmp_path / "out", tmp_path / "elsewhere" / "moved", tmp_path / "run"
    assert main(["prepare", str(tmp_path / "in"), "--out", str(out)]) == 0
    moved.parent.mkdir()
    out.rename(moved)
    # As on a machine where normdet is in another place.
    texts = [path.read_text() for path in moved.glob("*.yaml")]
    assert not [text for text in texts if str(tmp_path) in text or str(config_folder()) in text]
    monkeypatch.setattr("normdet.config.config_folder", lambda: tmp_path / "nowhere")
    options = [*SMALL, "OUTPUT_DIR", str(run), "MODEL.WEIGHTS", ""]
    assert main(["train", "--config-file", str(moved / "train.yaml"), *options]) == 0
    assert set(json.loads((run / "results.json").read_text())) == {"bbox", "segm"}
    assert json.loads((run / "input.json").read_text())["classes"] == ["object"]
    # The folder of the run works from there too.
    weights = ["MODEL.WEIGHTS", str(run / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "eval")]
    assert main(["eval", "--config-file", str(run / "config.yaml"), *weights]) == 0


@pytest.mark.slow
def test_pretrained_weights_on_images_of_16_bits(tmp_path, capsys):
    """As the ImageNet weights of configs/medical are: GN, trained with PIXEL_STD 1 on 8 bits."""
    source, data, run = tmp_path / "in", tmp_path / "data", tmp_path / "run"
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
    for index in range(3):
        case = blobs(index)
        Image.fromarray(case.pixels * 9).save(source / "images" / f"{index}.png")
        Image.fromarray(case.labels).save(source / "labels" / f"{index}.png")
    assert main(["prepare", str(source), "--out", str(data), "--window", "none"]) == 0
    weights = tmp_path / "R-18-GN.pth"
    pretrained = load_config("medical/nuclei.yaml", [*SMALL, "MODEL.PIXEL_STD", [1.0] * 3])
    model = build_model(pretrained)
    save_file({"model": model.state_dict(), "normdet": describe(pretrained)}, weights)

    options = [*SMALL, "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(run)]
    cfg = load_config(data / "train.yaml", options)
    pixels = [read_input(str(path), "BGR") for path in (data / "images").iterdir()]
    seen = model_input(cfg, pixels)
    assert 50 < seen.std() < 65 and abs(seen.mean()) < 15, "ImageNet's is 57, less its mean"

    command = ["train", "--config-file", str(data / "train.yaml"), *options]
    for wrong in ([1.0] * 3, [4000.0] * 3):
        assert main([*command, "MODEL.PIXEL_STD", str(wrong)]) == 2
        right = re.search(r'set MODEL.PIXEL_STD "(.*)"\n$', capsys.readouterr().err)[1]
        assert json.loads(right) == pytest.approx(list(cfg.MODEL.PIXEL_STD), rel=1e-3)
    assert main([*command, "DATASETS.PIXEL_STD", "()"]) == 2
    assert "nothing tells at which scale MODEL.WEIGHTS" in capsys.readouterr().err
    assert main(command) == 0
    report = json.loads((run / "weights.json").read_text())
    assert report["warnings"] == []
    # The trained model records its images' scale.
    found = ["--weights", str(run / "model_final.pth"), "--out", str(tmp_path / "found")]
    assert main(["predict", str(source / "images"), *found]) == 0


def model_input(cfg, pixels):
    """The input of the first convolution for images `(H, W, 3)`."""
    model = build_model(cfg)
    images = [{"image": torch.as_tensor(array.transpose(2, 0, 1).copy())} for array in pixels]
    return model.preprocess_image(images).tensor


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
