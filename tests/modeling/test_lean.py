"""`MODEL.NORMDET.RECOMPUTE` on a whole backbone: same keys, same bits, less kept."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normdet.config import config_file, load_config
from normdet.lab.bench.measure import held_bytes
from normdet.layers import FilterResponseNorm2d
from normdet.modeling.lean import lean
from tests.workers import run_workers


def backbone(norm, recompute, freeze_at=0):
    options = [
        "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.FPN.OUT_CHANNELS", "32",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.BACKBONE.FREEZE_AT", str(freeze_at),
        "MODEL.NORMDET.RECOMPUTE", str(recompute),
    ]  # fmt: skip
    cfg = load_config(config_file("coco/mask_rcnn_R_50_FPN_1x.yaml"), options, norm)
    torch.manual_seed(0)
    return build_backbone(cfg, ShapeSpec(channels=3)).train()


def outcome(model, x):
    sum(y.square().mean() for y in model(x).values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("freeze_at", [0, 2])
@pytest.mark.parametrize("norm", ["GN", "FRN+TLU"])
def test_same_bits_for_less(norm, freeze_at):
    x = torch.randn(1, 3, 64, 64)
    plain, lean = (backbone(norm, recompute, freeze_at) for recompute in (False, True))
    assert list(plain.state_dict()) == list(lean.state_dict())
    lean = copy.deepcopy(lean)
    first, second = outcome(plain, x), outcome(lean, x)
    for name, gradient in first.items():
        other = second[name]
        assert (gradient is other is None) or torch.equal(gradient, other), name
    kept = [held_bytes(lambda m=m: m(x), "cpu") for m in (plain, lean)]
    assert kept[1] < 0.9 * kept[0]


def test_a_failing_forward_leaves_no_context():
    from normdet.ops import recompute

    model = backbone("GN", True)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 5, 64, 64))
    assert recompute.current() is None


def in_two_processes(rank, recompute):
    model = DistributedDataParallel(backbone("FRN+TLU", recompute))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    outcome(model, x[rank : rank + 1])
    return {name: p.grad for name, p in model.module.named_parameters()}


@pytest.mark.slow
def test_same_bits_in_two_processes():
    plain, lean = (run_workers(in_two_processes, 2, recompute) for recompute in (False, True))
    for first, second in zip(plain, lean, strict=True):
        assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


@pytest.mark.slow
def test_compiled_it_gives_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), FilterResponseNorm2d(8, activation="TLU"), nn.Conv2d(8, 4, 3)
    )
    model = lean(model, True)
    x = torch.randn(2, 3, 16, 16)

    def gradients(forward):
        model.zero_grad()
        forward(x).square().mean().backward()
        return [p.grad for p in model.parameters()]

    expected = gradients(model)
    for found, gradient in zip(gradients(torch.compile(model)), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
