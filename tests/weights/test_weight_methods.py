"""Plain checkpoints under weight methods: loading, function and report."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.weights import Checkpointer, save_file


class Detector(nn.Module):
    """A backbone under the name that detectors give it."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)

    def forward(self, x):
        return self.backbone(x)["p2"]


def config(norm: str):
    opts = ["MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.DEPTH", 18, "MODEL.DEVICE", "cpu"]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16]
    return load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", opts)


def build(norm: str, seed: int = 0) -> tuple[Detector, Checkpointer]:
    torch.manual_seed(seed)
    model = Detector(config(norm)).eval()
    return model, Checkpointer(model, cfg=config(norm))


def save(norm: str, folder) -> tuple[nn.Module, str]:
    model, _ = build(norm)
    checkpointer = Checkpointer(model, str(folder), cfg=config(norm))
    checkpointer.save("plain")
    return model, str(folder / "plain.pth")


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["AWS", "WN"])
def test_the_function_of_a_plain_detector_is_kept(weight, tmp_path):
    plain, path = save("FrozenBN", tmp_path)
    model, checkpointer = build(f"FrozenBN+{weight}", seed=1)
    checkpointer.load(path)
    report = checkpointer.report
    assert not (report.missing or report.unexpected or report.reinitialized or report.warnings)
    assert set(report.matched) == set(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        if weight == "WN":  # and no start by data undoes it
            want = model(x)
            torch.testing.assert_close(model.train()(x), want)


def test_under_ws_the_same_file_is_refused(tmp_path):
    _, path = save("FrozenBN", tmp_path)
    with pytest.raises(NormdetError, match="trained without weight standardization"):
        build("FrozenBN+WS")[1].load(path)


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["AWS", "WN", "SpectralNorm"])
def test_own_checkpoints_come_back(weight, tmp_path):
    model, path = save(f"FrozenBN+{weight}", tmp_path)
    other, checkpointer = build(f"FrozenBN+{weight}", seed=1)
    checkpointer.load(path)
    assert set(checkpointer.report.matched) == set(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    with pytest.raises(NormdetError, match=f"trained with {weight}"):
        build("FrozenBN")[1].load(path)


def test_names_of_another_library(tmp_path):
    """If heuristics match names, the method's own tensors take none of them."""
    resnet18 = pytest.importorskip("torchvision").models.resnet18
    torch.manual_seed(0)
    theirs = resnet18().eval()
    save_file(theirs.state_dict(), tmp_path / "theirs.pth")
    model, checkpointer = build("FrozenBN+AWS", seed=1)
    checkpointer.load(str(tmp_path / "theirs.pth"))
    assert all(".fpn_" in key for key in checkpointer.report.missing)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stem = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        want = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(stem))))
        got = model.backbone.bottom_up(x)["res5"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
