"""`torch.jit.script` of our parts, as detectron2's own tests script its own."""

import detectron2.export.torchscript  # noqa: F401  (makes stages scriptable)
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from normdet.config import load_config

NORMS = ["GN", "FRN+TLU", "BN", "FrozenBN", "GN+WS", "GN+TLU"]


def config(norm: str, *opts) -> CfgNode:
    small = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18]
    small += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, *opts]
    return load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", small, norm=norm)


def compare(model: torch.nn.Module) -> None:
    scripted = torch.jit.script(model)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        want, got = model.eval()(x), scripted.eval()(x)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_resnet_can_be_scripted(norm):
    torch.manual_seed(0)
    cfg = config(norm, "MODEL.BACKBONE.NAME", "build_resnet_backbone")
    compare(build_backbone(cfg, ShapeSpec(channels=3)))


@pytest.mark.parametrize("norm", NORMS)
def test_fpn_can_be_scripted(norm):
    torch.manual_seed(0)
    compare(build_backbone(config(norm), ShapeSpec(channels=3)))
