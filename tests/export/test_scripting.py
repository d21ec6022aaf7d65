"""`torch.jit.script` of our parts, as detectron2's own tests script its own."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.export import deployable
from normdet.options import METHODS, parse

try:
    import detectron2.export.torchscript  # noqa: F401  (makes stages scriptable)
except ImportError:
    pytest.skip("this detectron2 exports with caffe2 alone", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NORMS = ["GN", "FRN+TLU", "BN", "FrozenBN", "GN+WS", "GN+TLU"]


def config(norm: str, *opts) -> CfgNode:
    small = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 18]
    small += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, *opts]
    return load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", small, norm=norm)


def compare(model: nn.Module) -> None:
    scripted = torch.jit.script(model)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        want, got = model.eval()(x), scripted.eval()(x)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_resnet_can_be_scripted(norm):
    torch.manual_seed(0)
    cfg = config(norm, "MODEL.BACKBONE.NAME", "build_resnet_backbone")
    compare(build_backbone(cfg, ShapeSpec(channels=3)))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_fpn_can_be_scripted(norm):
    torch.manual_seed(0)
    compare(build_backbone(config(norm), ShapeSpec(channels=3)))


def unit(text: str) -> nn.Module:
    torch.manual_seed(0)
    option = parse(text)
    conv = option.build_weight(Conv2d(3, 8, 3))
    conv.norm = option.build_norm(8, activate=True)
    return nn.Sequential(conv).eval()


TRACED = (
    "BRN", "BIN", "SwitchNorm", "EvalNorm", "InPlaceABN", "MeanOnlyBN", "MABN", "EvoNormS0",
    "EvoNormB0", "AN", "AttentiveBN",
)  # fmt: skip
FOLDED = ("AWS", "SWS", "WN", "WC", "SpectralNorm")


@pytest.mark.parametrize("norm", [m.name for m in METHODS.values() if m.kind == "norm"])
def test_every_norm_is_scripted_or_says_what_to_do(norm):
    model, x = unit(norm), torch.rand(2, 3, 6, 6)
    if norm in TRACED:
        with pytest.raises(NormdetError, match="cannot be scripted .*: trace it instead"):
            torch.jit.script(model)
        scripted = torch.jit.trace(model, x)
    else:
        scripted = torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", FOLDED)
def test_weight_methods_are_scripted_once_folded(method):
    model, x = unit(f"GN+{method}"), torch.rand(2, 3, 6, 6)
    with pytest.raises(NormdetError, match=r"script normdet.export.deployable\(model\)"):
        torch.jit.script(model)
    with torch.no_grad():
        scripted = torch.jit.script(deployable(model))
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-5, atol=1e-5)
