"""`normdet pretrain` on two classes of drawn images: it trains, resumes, and detectors load it."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from PIL import Image

from normdet.config import load_config
from normdet.engine import Interrupted
from normdet.errors import NormdetError
from normdet.pretrain import main
from normdet.pretrain.command import _stretched
from normdet.pretrain.images import find_labelled
from normdet.pretrain.trainer import PretrainTrainer
from normdet.weights import load_file, load_model
from tests.engine.test_trainer import finished, same, send

SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
]  # fmt: skip
TINY = [*SMALL, "PRETRAIN.SIZE", "32", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01",
        "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]  # fmt: skip


def draw(folder: Path, value: int, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(value)
    for index in range(count):
        pixels = rng.integers(0, 60, (40, 48, 3), dtype=np.uint8) + np.uint8(value)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    draw(folder / "dark", 20, 12)
    draw(folder / "light", 180, 12)
    return folder


def config(data, out, *opts, norm="FRN+TLU"):
    keys = ["PRETRAIN.DATA", str(data), "OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "4"]
    return load_config("pretrain/base.yaml", [*TINY, *keys, *opts], norm, ["backbone"])


@pytest.mark.slow
def test_it_learns_and_detectors_take_its_file(data, tmp_path, capsys):
    out = tmp_path / "weights"
    arguments = ["--norm", "FRN+TLU", "--data", str(data), "--out", str(out), "--epochs", "6"]
    assert main([*arguments, *TINY, "PRETRAIN.SMALLEST_CROP", "0.5"]) == 0
    file = out / "R50-FRN-TLU.pth"
    assert str(file) in capsys.readouterr().out
    card = Path(f"{file}.md").read_text()
    assert "dark, light" in card and "top-1" in card and "123.675" in card
    pixels = load_config("pretrain/base.yaml")
    seen = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", str(pixels.MODEL.PIXEL_MEAN),
            "MODEL.PIXEL_STD", str(pixels.MODEL.PIXEL_STD), "MODEL.WEIGHTS", str(file),
            "MODEL.RESNETS.STRIDE_IN_1X1", "False"]  # fmt: skip
    trained = load_file(file)["model"]
    for name in ("coco/mask_rcnn_R_50_FPN_1x.yaml", "coco/mask_rcnn_R_50_C4_1x.yaml"):
        cfg = load_config(name, [*SMALL, *seen], "FRN+TLU")
        model, report = load_model(cfg)
        state = model.state_dict()
        lacking = [key for key in report.missing if "bottom_up" in key or "res" in key]
        assert not lacking and not report.reinitialized and not report.warnings
        stem = next(key for key in state if key.endswith("stem.conv1.weight"))
        assert torch.equal(state[stem], trained["stem.conv1.weight"])
    with pytest.raises(NormdetError, match="PIXEL_STD"):
        load_model(load_config(name, [*SMALL, "MODEL.WEIGHTS", str(file)], "FRN+TLU"))


@pytest.mark.slow
def test_a_resumed_run_equals_the_one_that_was_not_stopped(data, tmp_path):
    mixed = ["PRETRAIN.MIXUP", "0.2", "PRETRAIN.LABEL_SMOOTHING", "0.1"]
    whole = config(data, tmp_path / "whole", *mixed)
    PretrainTrainer(whole).train()
    cfg = config(data, tmp_path / "stopped", *mixed)
    trainer = PretrainTrainer(cfg)
    trainer.register_hooks([send(signal.SIGTERM, iteration=1)])
    with pytest.raises(Interrupted, match="after 2 of 4 iterations"):
        trainer.train()
    resumed = PretrainTrainer(cfg)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert same(finished(cfg)["model"], finished(whole)["model"])


@pytest.mark.slow
def test_two_workers_validate_all_images_once(data, tmp_path):
    import json

    out = tmp_path / "two"
    arguments = ["--norm", "GN", "--data", str(data), "--out", str(out), "--epochs", "1"]
    assert main([*arguments, "--num-gpus", "2", *TINY]) == 0
    (found,) = json.loads((out / "results.json").read_text()).values()
    assert found["top-1"] in (0.0, 50.0, 100.0)  # of two images


def test_the_loss_is_cross_entropy_of_the_pooled_features(data, tmp_path):
    cfg = config(data, tmp_path, "PRETRAIN.LABEL_SMOOTHING", "0.1", norm="GN")
    torch.manual_seed(0)
    model = build_model(cfg).train()
    images = torch.randint(0, 256, (2, 3, 32, 32))
    batch = [{"image": image, "label": label} for label, image in enumerate(images)]
    pixels = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in pixels)
    features = model.backbone.bottom_up((images - mean) / std)["res5"]
    scores = features.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    spread = torch.full((2, 2), 0.05) + 0.9 * torch.eye(2)
    expected = -(spread * F.log_softmax(scores, 1)).sum(1).mean()
    torch.testing.assert_close(model(batch)["loss_cls"], expected)
    outputs = model.eval()(batch)
    torch.testing.assert_close(torch.stack([o["scores"] for o in outputs]), scores)


def test_residual_branches_start_at_zero(data, tmp_path):
    model = build_model(config(data, tmp_path, norm="GN"))
    block = model.backbone.bottom_up.res2[0]
    assert not block.conv3.norm.weight.any() and block.conv1.norm.weight.all()


class Constant(torch.nn.Module):
    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, batch):
        return [{"scores": torch.full((2,), self.score)} for _ in batch]


@pytest.mark.parametrize("score", [0.0, float("nan")])
def test_equal_scores_are_no_hits(data, tmp_path, score):
    found = PretrainTrainer.test(config(data, tmp_path), Constant(score))
    assert found == {"classification": {"top-1": 0.0}}


def test_images_that_cannot_be_read_are_left_out_and_named(data, tmp_path, caplog):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "dark" / "05.png").write_bytes(b"no image")  # held out
    PretrainTrainer.test(config(folder, tmp_path), Constant(0.0))
    assert "1 images are left out" in caplog.text and "05.png" in caplog.text


def test_train_and_val_may_be_given(data, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(data, tmp_path / part)
    found = find_labelled(tmp_path)
    assert found.classes == ["dark", "light"] and len(found.train) == len(found.val) == 24
    shutil.rmtree(tmp_path / "val" / "dark")
    draw(tmp_path / "val" / "grey", 90, 1)
    with pytest.raises(NormdetError, match="different classes: dark, grey"):
        find_labelled(tmp_path)


def test_every_image_trains_or_is_held_out(data):
    found = find_labelled(data)
    assert sorted(found.train + found.val) == sorted({*found.train, *found.val})
    assert len(found.train) == 22 and {label for _, label in found.val} == {0, 1}


def _empty_class(folder):
    draw(folder / "full", 20, 3)
    (folder / "empty").mkdir()


def _one_image(folder):
    draw(folder / "a", 20, 3)
    draw(folder / "b", 20, 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is no folder"),
        (lambda folder: folder.mkdir(), "a folder for each class"),
        (lambda folder: draw(folder / "one", 20, 3), "has one class, one"),
        (_empty_class, "empty"),
        (_one_image, "b has one image"),
    ],
)
def test_folders_without_classes_are_refused(tmp_path, make, said):
    make(tmp_path / "data")
    with pytest.raises(NormdetError, match=said):
        main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


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
    keys = _stretched(cfg, 10, 1_281_167)
    found = dict(zip(keys[::2], keys[1::2], strict=True))
    assert found["SOLVER.MAX_ITER"] == 50_046
    assert found["SOLVER.STEPS"] == "(15014, 30028, 45041)"
    assert found["SOLVER.REFERENCE_WORLD_SIZE"] == 8
