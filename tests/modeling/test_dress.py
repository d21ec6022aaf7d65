"""The last norm of a residual block and its join in one pass: the numbers of the two in turn."""

import copy

import pytest
import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock

from normdet import options
from normdet.modeling.resnet import normalize_blocks

BLOCKS = {
    "basic": lambda: BasicBlock(16, 16, norm=""),
    "bottleneck": lambda: BottleneckBlock(16, 32, bottleneck_channels=16, norm=""),
}


def results(block, x):
    block, leaf = copy.deepcopy(block), x.clone().requires_grad_()
    y = block(leaf)
    y.square().mean().backward()
    return [y.detach(), leaf.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize(
    "name",
    ["GN", "GN+WS", "FRN+TLU+AWS", "GN+WN", "FRN+TLU", "FRN", "FrozenBN", "LN", "BN"],
)
def test_fused_and_in_turn(name, kind, monkeypatch):
    torch.manual_seed(0)
    option = options.parse(name)
    (block,) = normalize_blocks(torch.nn.Sequential(BLOCKS[kind]()), option, 50)
    for parameter in block.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    x = torch.randn(2, 16, 9, 7)
    joined = []
    whole = type(getattr(block, block.last).norm).joined
    monkeypatch.setattr(
        type(getattr(block, block.last).norm), "joined", lambda *a: joined.append(1) or whole(*a)
    )
    ours = results(block, x)
    assert len(joined) == (name != "BN")
    # A norm that is watched is called by itself.
    getattr(block, block.last).norm.register_forward_hook(lambda *call: None)
    theirs = results(block, x)
    assert len(joined) == (name != "BN")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_hooks_see_every_module_called():
    (block,) = normalize_blocks(torch.nn.Sequential(BLOCKS["basic"]()), options.parse("GN"), 18)
    x, seen = torch.randn(1, 16, 6, 6), []
    expected = block(x)
    for module in (block.conv2, block.conv2.norm, block.join):
        handle = module.register_forward_hook(lambda *call: seen.append(call[2].shape))
        torch.testing.assert_close(block(x), expected)
        handle.remove()
    assert seen == [(1, 16, 6, 6)] * 3
