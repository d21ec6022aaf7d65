"""Fixup: its blocks against the paper's, its start, and the parts that stay without norms."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone, build_model
from torch import nn

from normdet.errors import NormdetError
from normdet.keys import put
from normdet.layers import FixupScalars, NormLayer
from normdet.modeling import describe_norms
from normdet.options import parse, valid_options
from normdet.parts import NORMED
from tests.modeling.test_parts import config, shallow


def backbone(text: str, depth: int = 18, *opts) -> nn.Module:
    opts = ["MODEL.RESNETS.NORM", text, "MODEL.RESNETS.DEPTH", depth, *opts]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64] if depth < 50 else []
    torch.manual_seed(0)
    return build_backbone(config("mask_rcnn", *opts)).bottom_up


def scattered(module: nn.Module) -> nn.Module:
    """Change every number from its start, in float64."""
    torch.manual_seed(1)
    for value in module.parameters():
        value.data += 0.1 * torch.randn_like(value)
    return module.requires_grad_(True).double()


def reference_block(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """1901.09321, figure 1 and section 3, rule 3: a bias before each convolution and activation."""
    out = entered = x + block.entry.offset
    convs = [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
    for conv in convs:
        out = F.conv2d(out, conv.weight, None, conv.stride, conv.padding)
        if conv is not convs[-1]:
            out = (out + conv.norm.shift).clamp(min=0) + conv.norm.offset
    out = out * convs[-1].norm.scale + convs[-1].norm.shift
    if getattr(block, "shortcut", None) is not None:
        x = F.conv2d(entered, block.shortcut.weight, None, block.shortcut.stride)
    return (out + x).clamp(min=0)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "stage", "index"), [
    (18, "res2", 1), (18, "res3", 0), (50, "res2", 0), (50, "res2", 1),
])  # fmt: skip
def test_a_block_against_the_paper(depth, stage, index):
    block = scattered(getattr(backbone("Fixup", depth), stage)[index])
    x = torch.randn(1, block.in_channels, 5, 5, dtype=torch.float64, requires_grad=True)
    y, want = block(x), reference_block(block, x)
    torch.testing.assert_close(y, want)
    over = [x, *block.parameters()]
    grads, want_grads = (torch.autograd.grad(v.square().sum(), over) for v in (y, want))
    for got, ref in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(got, ref)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "blocks", "m"), [(18, 8, 2), (34, 16, 2), (50, 16, 3)])
def test_its_start_is_the_stock_start_rescaled(depth, blocks, m):
    stock, ours = backbone("", depth).state_dict(), backbone("Fixup", depth)
    for name, value in ours.state_dict().items():
        layer = name.split(".")[-2]
        if name.endswith(("scale", "shift", "offset")):
            assert value.tolist() == [float(name.endswith("scale"))]
        elif name.startswith("stem") or layer == "shortcut":
            assert torch.equal(value, stock[name])
        elif layer == f"conv{m}":
            assert not value.any(), name
        else:
            torch.testing.assert_close(value, stock[name] * blocks ** (-1 / (2 * m - 2)))
    x = torch.randn(1, 64 if depth < 50 else 256, 6, 6)
    assert torch.equal(ours.res2[1](x), x.relu())


def test_the_signal_grows_without_norms_and_not_under_fixup():
    """Without norms the signal grows with depth; under Fixup it does not."""
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain, ours = (backbone(text, 50)(x)["res5"].std() for text in ("", "Fixup"))
    assert ours < 3 and plain > 10 * ours


@pytest.mark.slow
def test_the_whole_network_counts_where_res5_is_on_regions():
    cfg = config("c4", "MODEL.RESNETS.NORM", "Fixup")
    torch.manual_seed(0)
    model = build_model(cfg)
    cfg.MODEL.RESNETS.NORM = ""
    torch.manual_seed(0)
    stock = build_model(cfg)
    for of in (lambda m: m.backbone.res3[0].conv2, lambda m: m.roi_heads.res5[0].conv2):
        torch.testing.assert_close(of(model).weight, of(stock).weight / 2)  # 16 ** (-1 / 4)


def test_other_parts_have_no_norm_keep_their_biases_and_start_as_stock():
    def build(text):
        cfg = shallow("MODEL.BACKBONE.FREEZE_AT", 0)
        for part in NORMED:
            put(cfg, NORMED[part].key, text)
        torch.manual_seed(0)
        return build_model(cfg)

    stock, ours = build("").state_dict(), build("Fixup")
    for name, value in stock.items():
        if ".bottom_up." not in name:
            assert torch.equal(ours.state_dict()[name], value), name
    for name, module in ours.named_modules():
        if isinstance(module, NormLayer) and ".bottom_up." not in name:
            raise AssertionError(f"{name} is normalized")
    rows = {row.part: row.norm for row in describe_norms(ours)}
    assert rows["backbone stem"] == rows["backbone res5"] == "Fixup"
    assert rows["FPN"] == rows["RPN head"] == rows["box head"] == rows["mask head"] == "none"


def test_frozen_stages():
    model = backbone("Fixup", 18, "MODEL.BACKBONE.FREEZE_AT", 2)
    assert not any(p.requires_grad for part in (model.stem, model.res2) for p in part.parameters())
    assert all(p.requires_grad for p in model.res3.parameters())


@pytest.mark.parametrize("text", ["Fixup+TLU", "Fixup+WS", "GN+Fixup", "Fixup+GN", "Fixup+Fixup"])
def test_it_stands_alone(text):
    assert "Fixup" in valid_options() and str(parse("Fixup")) == "Fixup" and not parse("Fixup")
    with pytest.raises(NormdetError, match="Fixup is an initialization without norms"):
        parse(text)


@pytest.mark.parametrize("activation", [None, "ReLU"])
def test_the_scalars(activation):
    layer = scattered(FixupScalars(4, activation, scale=True, offset=True))
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    want = x * layer.scale + layer.shift
    want = (want.relu() if activation else want) + layer.offset
    torch.testing.assert_close(layer(x), want)
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))
    for dtype in (torch.float16, torch.bfloat16):
        y = layer.float()(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), want, rtol=0.02, atol=0.02)
    with pytest.raises(NormdetError, match=r"FixupScalars\(4\) takes"):
        layer(torch.randn(2, 5, 3, 3))


def test_parameters_reach_the_scalars():
    option = parse("Fixup", {"Fixup": {"RATE": 0.5}})
    assert option.build_scalars(4, scale=True).rates() == {"scale": 0.5, "shift": 0.5}
