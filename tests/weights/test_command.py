"""`normdet inspect` says what a file is and which config it needs."""

import os
import pickle
import shlex
import zipfile

import pytest
import torch
import torchvision

from normdet.cli import main
from normdet.config import load_config
from normdet.weights import save_file
from normdet.weights.command import differing, key_value_pairs


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    with torch.no_grad():
        model.bn1.running_var.mul_(2)
    save_file(model.state_dict(), tmp_path / "r18.pth")
    return str(tmp_path / "r18.pth")


def test_a_file_alone(file, capsys):
    assert main(["inspect", file]) == 0
    said = capsys.readouterr().out
    for line in (
        "layout: torchvision, timm or mmcv ResNet",
        "tensors: 122, 11,699,132 numbers",
        "values: all finite",
        "backbone: ResNet-18",
        "norm of the backbone: BN",
        "batch statistics: there",
        "channel order: RGB (usual for its kind)",
        "pixel std: [58.395, 57.12, 57.375] (usual for its kind)",
    ):
        assert line + "\n" in said
    assert "MODEL.RESNETS.DEPTH 18" in said and "nothing in the file tells" in said


@pytest.mark.slow
def test_the_pairs_it_prints_are_what_the_command_takes(file, capsys):
    """The printed pairs are all that is missing."""
    config = ["--config-file", "coco/mask_rcnn_R_50_FPN_1x.yaml"]
    small = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RESNETS.DEPTH", "18"]
    small += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    assert main(["inspect", file, *config, *small, "MODEL.PIXEL_STD", "[60.0, 60.0, 60.0]"]) == 0
    said = capsys.readouterr().out
    pairs = shlex.split(said.split("to add to the config:\n")[1].splitlines()[0])
    assert main(["inspect", file, *config, *small, *pairs]) == 0
    said = capsys.readouterr().out
    assert "to add to the config:\nnothing\n" in said
    assert "tensors loaded from" in said and "left out: 2 of the file's tensors" in said


@pytest.mark.slow
def test_a_config_that_misuses_the_file_is_refused(file, capsys):
    config = ["--config-file", "coco/mask_rcnn_R_50_FPN_1x.yaml", "MODEL.RESNETS.DEPTH", "18"]
    config += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
    assert main(["inspect", file, *config]) == 2
    told = capsys.readouterr()
    assert "was trained with MODEL.PIXEL_STD" in told.err
    assert "MODEL.PIXEL_STD '[58.395, 57.12, 57.375]'" in told.out


def test_values_that_are_not_finite_are_named(tmp_path, capsys):
    state = torchvision.models.resnet18().state_dict()
    state["layer2.0.conv1.weight"][0, 0] = torch.nan
    save_file(state, tmp_path / "w.pth")
    assert main(["inspect", str(tmp_path / "w.pth")]) == 1
    assert "layer2.0.conv1.weight has NaN or infinite values" in capsys.readouterr().out


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "none.pth")]) == 2
    assert main(["inspect", str(tmp_path / "none.pth"), "--norm", "GN"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and "does not exist" in errors[0] and "--config-file" in errors[1]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_hostile_files_are_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = {"meta": [{"cfg": Hostile()}]}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(state))
    torch.save(state, tmp_path / "w.pth")
    save_file({"w": torch.ones(1)}, tmp_path / "zip.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "a") as archive:
        archive.writestr("../../pwned", b"x")
    for name, why in (("w.pkl", "system"), ("w.pth", "system"), ("zip.pth", "outside")):
        assert main(["inspect", name]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert name in line and why in line
    assert not (tmp_path / "pwned").exists() and not (tmp_path.parent / "pwned").exists()


def test_pairs_are_quoted_for_a_shell():
    cfg = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml")
    keys = {"MODEL.PIXEL_STD": [2.0, 1.0, 1.0], "MODEL.RESNETS.DEPTH": 50}
    assert differing(cfg, keys) == {"MODEL.PIXEL_STD": [2.0, 1.0, 1.0]}
    assert key_value_pairs(keys) == "MODEL.PIXEL_STD '[2.0, 1.0, 1.0]' MODEL.RESNETS.DEPTH 50"
