"""BIN's gate: in [0, 1] after every step, at its own rate; its ends are BN and IN."""

import torch
from detectron2.config import CfgNode
from torch import nn

from normdet import layers
from normdet.config import load_config
from normdet.solver import build_optimizer, optimizer_groups


def cfg() -> CfgNode:
    return load_config("quickstart/base.yaml", ["SOLVER.CLIP_GRADIENTS.ENABLED", False])


def test_the_gate_stays_a_share_after_every_step():
    torch.manual_seed(0)
    norm = layers.BatchInstanceNorm(6)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0, momentum=0.9)
    left = set()
    for _ in range(20):
        optimizer.zero_grad()
        y = model(torch.randn(4, 3, 8, 8) * torch.rand(4, 1, 1, 1))
        (y[0] - y[1]).abs().mean().backward()
        optimizer.step()
        left |= {float(rho) for rho in norm.rho if not 0 <= rho <= 1}
        layers.after_step(model)
        assert norm.rho.min() >= 0 and norm.rho.max() <= 1
    assert left, "the steps never left [0, 1]: nothing was tested"


def test_the_gate_trains_at_its_own_rate():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), layers.BatchInstanceNorm(6, rate=7.0))
    names = {p: name for name, p in model.named_parameters()}
    rates = {names[p]: g["lr"] for g in optimizer_groups(cfg(), model) for p in g["params"]}
    base = cfg().SOLVER.BASE_LR
    assert rates.pop("1.rho") == 7 * base and set(rates.values()) == {base}
    optimizer = build_optimizer(cfg(), model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name: float((before[name] - p).mean()) for name, p in model.named_parameters()}
    assert abs(moved["1.rho"] / moved["1.bias"] - 7) < 1e-3


def test_the_ends_of_the_gate():
    torch.manual_seed(0)
    x = torch.randn(3, 6, 5, 5)
    norm = layers.BatchInstanceNorm(6)
    torch.testing.assert_close(norm(x), layers.BatchNorm2d(6)(x))
    norm.rho.data.zero_()
    torch.testing.assert_close(norm(x), layers.InstanceNorm(6)(x))
    assert norm.scalars() == {"rho": 0.0}
