"""Networks of timm as backbones of detectron2's detectors."""

import pytest
import timm
import torch
from detectron2.modeling import build_backbone, build_model
from safetensors.torch import save_file
from torch import nn

from normdet import NormdetError
from normdet.config import load_config
from normdet.layers import FilterResponseNorm2d, FrozenBatchNorm2d
from normdet.solver import norm_parameters

IMAGENET = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53],
            "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]]  # fmt: skip


def config(norm: str, *opts, name: str = "resnet18", base: str = "mask_rcnn_R_50_FPN_1x"):
    kind = "retinanet_timm" if base.startswith("retinanet") else "timm"
    own = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", f"build_normdet_{kind}_fpn_backbone"]
    own += ["MODEL.WEIGHTS", "", "MODEL.NORMDET.TIMM", name, "MODEL.BACKBONE.FREEZE_AT", 0]
    return load_config(f"coco/{base}.yaml", [*own, *opts], norm=norm)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "regnety_004"])
def test_a_backbone_has_the_norm_and_every_level(name):
    backbone = build_backbone(config("FRN+TLU", name=name))
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert {n: m.shape[-1] for n, m in maps.items()} == {
        "p2": 16, "p3": 8, "p4": 4, "p5": 2, "p6": 1
    }  # fmt: skip
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert isinstance(backbone.fpn_output3.norm, FilterResponseNorm2d)
    sum(m.sum() for m in maps.values()).backward()


@pytest.mark.slow
def test_its_weights_come_from_a_file_and_its_pixels_are_checked(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("resnet18").eval()
    file = tmp_path / "resnet18.safetensors"
    save_file(net.state_dict(), file)
    weights = ["MODEL.NORMDET.TIMM_WEIGHTS", str(file)]
    backbone = build_backbone(config("FrozenBN", *weights, *IMAGENET)).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.bottom_up(x)["res5"], net.forward_features(x))
    with pytest.raises(NormdetError, match="INPUT.FORMAT RGB MODEL.PIXEL_MEAN \\[123.675"):
        build_backbone(config("FrozenBN", *weights))
    with pytest.raises(NormdetError, match="another network"):
        build_backbone(config("FrozenBN", *weights, *IMAGENET, name="resnet34"))
    file.write_bytes(b"nothing")
    with pytest.raises(NormdetError, match="TIMM_WEIGHTS"):
        build_backbone(config("FrozenBN", *weights, *IMAGENET))


def test_a_network_without_norms_keeps_its_blocks_and_takes_its_weights(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model("nf_resnet26").eval()
    for name, value in net.named_parameters():
        if "gain" in name:
            value.data.add_(0.1 * torch.randn_like(value))
    file = tmp_path / "nf_resnet26.safetensors"
    save_file(net.state_dict(), file)
    opts = ["MODEL.NORMDET.TIMM_WEIGHTS", str(file), *IMAGENET, "MODEL.BACKBONE.FREEZE_AT", 2]
    backbone = build_backbone(config("GN", "MODEL.RESNETS.NORM", "", *opts, name="nf_resnet26"))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.bottom_up(x)["res5"].relu(), net.forward_features(x))
    learning = {n for n, p in backbone.bottom_up.net.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in learning} == {"stages_1", "stages_2", "stages_3"}
    gains = {n for n in learning if n.endswith("gain")}
    undecayed = {id(p) for p in norm_parameters(backbone.bottom_up)}
    named = dict(backbone.bottom_up.net.named_parameters())
    assert gains and gains == {n for n in learning if id(named[n]) in undecayed}
    with pytest.raises(NormdetError, match="no norm that GN could replace"):
        build_backbone(config("GN", name="nf_resnet26"))


def test_frozen_stages_stay_frozen():
    net = build_backbone(config("GN", "MODEL.BACKBONE.FREEZE_AT", 2)).bottom_up.net
    assert not any(p.requires_grad for p in [*net.conv1.parameters(), *net.bn1.parameters()])
    assert not any(p.requires_grad for p in net.layer1.parameters())
    assert all(p.requires_grad for p in net.layer2.parameters())


def test_an_unknown_network_is_refused():
    with pytest.raises(NormdetError, match="MODEL.NORMDET.TIMM 'resnet5'"):
        build_backbone(config("GN", name="resnet5"))
    with pytest.raises(NormdetError, match="names no network"):
        build_backbone(config("GN", name=""))


@pytest.mark.slow
def test_a_retinanet_on_timm():
    model = build_model(config("FrozenBN", base="retinanet_R_50_FPN_1x")).eval()
    assert isinstance(model.backbone.bottom_up.net.bn1, FrozenBatchNorm2d)
    assert "instances" in model([{"image": torch.rand(3, 64, 64) * 255}])[0]
