"""Other libraries' ResNets load under their own names and compute the same."""

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import Backbone

from normdet.config import load_config
from normdet.weights import Checkpointer


def backbone(norm: str, depth: int = 50) -> Backbone:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.STRIDE_IN_1X1", False]
    opts += ["MODEL.RESNETS.DEPTH", depth, "MODEL.BACKBONE.NAME", "build_normdet_resnet_backbone"]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256]
    cfg = load_config("coco/Base-MaskRCNN-FPN.yaml", opts, norm=norm)
    return build_backbone(cfg, ShapeSpec(channels=3)).eval()


def features(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(network, name)(x)
    return x


@pytest.mark.parametrize(("depth", "norm"), [(50, "FrozenBN"), (50, "GN"), (18, "BN")])
def test_torchvision_resnets(depth, norm, tmp_path):
    torch.manual_seed(0)
    kwargs = {} if norm != "GN" else {"norm_layer": lambda c: torch.nn.GroupNorm(32, c)}
    theirs = torchvision.models.get_model(f"resnet{depth}", weights=None, **kwargs).eval()
    for name, value in theirs.state_dict().items():
        if value.dim() == 1 and value.is_floating_point():
            centre = 0.0 if "bias" in name or "mean" in name else 0.8
            value.copy_(torch.rand_like(value) * 0.4 + centre)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = backbone(norm, depth)
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / "theirs.pth"))
    report = checkpointer.report
    assert not report.missing and not report.unexpected and not report.reinitialized
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want, got = features(theirs, x), ours(x)["res5"]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


def test_mmcv_names_in_a_state_dict_entry(tmp_path):
    theirs = torchvision.models.resnet50(norm_layer=lambda c: torch.nn.GroupNorm(32, c))
    state = {k.replace("bn", "gn"): v for k, v in theirs.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "mm.pth")
    ours = backbone("GN")
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / "mm.pth"))
    assert not checkpointer.report.missing
    assert torch.equal(ours.res3[0].shortcut.norm.bias, theirs.layer2[0].downsample[1].bias)


def test_a_real_imagenet_resnet_names_what_it_loaded(real_data):
    ours = backbone("FrozenBN")
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(real_data / "weights" / "resnet50-imagenet.pth"))
    assert len(checkpointer.report.matched) == len(ours.state_dict())
