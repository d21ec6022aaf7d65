"""`normdet pretrain` learns, in one process or two, and detectors take its file."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.pretrain import command, main
from normdet.pretrain.command import stretched
from normdet.weights import load_file, load_model, save_file

from .tiny import SMALL, TINY

# The pixels and the strides of the recipes.
SEEN = [
    "INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]",
    "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]", "MODEL.RESNETS.STRIDE_IN_1X1", "False",
]  # fmt: skip


@pytest.mark.slow
def test_it_learns_and_detectors_take_its_file(data, tmp_path, capsys):
    out = tmp_path / "weights"
    arguments = ["--norm", "FRN+TLU", "--data", str(data), "--out", str(out), "--epochs", "6"]
    assert main([*arguments, *TINY, "PRETRAIN.SMALLEST_CROP", "0.5"]) == 0
    file = out / "R50-FRN-TLU.pth"
    assert str(file) in capsys.readouterr().out
    card = Path(f"{file}.md").read_text()
    assert "dark, light" in card and "top-1" in card and "123.675" in card
    trained = load_file(file)["model"]
    for name in ("coco/mask_rcnn_R_50_FPN_1x.yaml", "coco/mask_rcnn_R_50_C4_1x.yaml"):
        cfg = load_config(name, [*SMALL, *SEEN, "MODEL.WEIGHTS", str(file)], "FRN+TLU")
        model, report = load_model(cfg)
        state = model.state_dict()
        lacking = [key for key in report.missing if "bottom_up" in key or "res" in key]
        assert not lacking and not report.reinitialized and not report.warnings
        stem = next(key for key in state if key.endswith("stem.conv1.weight"))
        assert torch.equal(state[stem], trained["stem.conv1.weight"])
    with pytest.raises(NormdetError, match="PIXEL_STD"):
        load_model(load_config(name, [*SMALL, "MODEL.WEIGHTS", str(file)], "FRN+TLU"))


def test_it_starts_from_the_backbone_of_a_detector(tmp_path):
    detector = build_model(load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", [*SMALL, *SEEN], "GN"))
    file = tmp_path / "detector.pth"
    save_file({"model": detector.state_dict()}, file)
    cfg = load_config("pretrain/gn.yaml", [*SMALL, "MODEL.WEIGHTS", str(file)])
    model, report = load_model(cfg)
    assert sorted(report.missing) == ["classifier.bias", "classifier.weight"]
    ours, theirs = (m.backbone.bottom_up.res4[0].conv2.weight for m in (model, detector))
    assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_two_workers_validate_all_images_once(data, tmp_path):
    out = tmp_path / "two"
    arguments = ["--norm", "GN", "--data", str(data), "--out", str(out), "--epochs", "1"]
    assert main([*arguments, "--num-gpus", "2", *TINY]) == 0
    (found,) = json.loads((out / "results.json").read_text()).values()
    assert found["top-1"] in (0.0, 50.0, 100.0)  # of two images


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config-file", "coco/mask_rcnn_R_50_FPN_1x.yaml"], "is of GeneralizedRCNN"),
        (["--norm", "FrozenBN"], "statistics of pretrained weights"),
        (["--epochs", "0"], "above 0"),
    ],
)
def test_bad_arguments_are_refused(data, tmp_path, arguments, said):
    with pytest.raises(NormdetError, match=said):
        main(["--data", str(data), "--out", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_stretched_as_a_whole():
    cfg = load_config("pretrain/gn.yaml")
    keys = stretched(cfg, 10, 1_281_167)
    found = dict(zip(keys[::2], keys[1::2], strict=True))
    assert found["SOLVER.MAX_ITER"] == 50_046
    assert found["SOLVER.STEPS"] == "(15014, 30028, 45041)"
    assert found["SOLVER.REFERENCE_WORLD_SIZE"] == 8


def test_an_epoch_ends_with_a_validation_unless_the_keys_say_otherwise(tmp_path, monkeypatch):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for k in range(20):
            (tmp_path / label / f"{k}.png").touch()
    seen = []
    monkeypatch.setattr(command, "train", lambda args, trainer: seen.append(load_config(
        args.config_file, args.opts, args.norm, args.norm_parts)))  # fmt: skip
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--epochs", "3"]
    main([*arguments, "SOLVER.IMS_PER_BATCH", "4", "TEST.EVAL_PERIOD", "7"])
    solver = seen[0].SOLVER
    assert (solver.MAX_ITER, solver.CHECKPOINT_PERIOD, seen[0].TEST.EVAL_PERIOD) == (27, 9, 7)
