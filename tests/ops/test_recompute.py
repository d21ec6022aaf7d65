"""Outputs computed anew in backward: the same bits, less kept, nothing else touched."""

import contextlib
import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from normdet.layers import EvoNormS0, FilterResponseNorm2d, GroupNorm
from normdet.ops.recompute import enter, leave, recomputed

KEPT = contextlib.nullcontext


class Net(nn.Module):
    def __init__(self, norm="frn"):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.norm = {
            "frn": lambda: FilterResponseNorm2d(8, activation="TLU"),
            "gn": lambda: GroupNorm(4, 8, activation="ReLU"),
            "evonorm": lambda: EvoNormS0(4, 8, activation="EvoNorm"),
        }[norm]()

    def forward(self, x):
        y = self.norm(self.first(x))
        return self.right(F.max_pool2d(self.norm(self.left(y) + self.right(y)), 2))


def gradients(net, context, call=None, **options):
    net = copy.deepcopy(net)
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with context(), torch.autocast("cpu", torch.bfloat16, **{"enabled": False, **options}):
        y = net(x) if call is None else call(net, x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in net.parameters())]


def same(first, second):
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("enabled", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("norm", ["frn", "gn", "evonorm"])
def test_gradients_have_the_same_bits(norm, enabled):
    net = Net(norm)
    same(gradients(net, KEPT, enabled=enabled), gradients(net, recomputed, enabled=enabled))


def test_frozen_parameters():
    for name in ("first", "left", "right", "norm"):
        net = Net()
        getattr(net, name).requires_grad_(False)
        same(gradients(net, KEPT), gradients(net, recomputed))


def test_under_checkpoint():
    net = Net()

    def call(net, x):
        return checkpoint(net, x, use_reentrant=False)

    same(gradients(net, KEPT), gradients(net, recomputed, call))


def conv_of_norm(context):
    x = torch.randn(1, 8, 20, 20, requires_grad=True)
    conv, norm = nn.Conv2d(8, 8, 1), FilterResponseNorm2d(8, activation="TLU")
    with context():
        y = norm(x)
        z = conv(y)
    return z, y


def test_the_output_is_let_go_and_without_the_context_kept():
    from torch.multiprocessing.reductions import StorageWeakRef

    for context, gone in ((KEPT, False), (recomputed, True)):
        gc.disable()  # no cycle may hold it either
        try:
            z, y = conv_of_norm(context)
            storage = StorageWeakRef(y.untyped_storage())
            del y
            assert storage.expired() == gone
        finally:
            gc.enable()
        z.sum().backward()


def test_the_graph_is_freed_without_a_collector():
    gc.disable()
    try:
        z, y = conv_of_norm(recomputed)
        node = weakref.ref(y.grad_fn)
        del y, z
        assert node() is None
    finally:
        gc.enable()


def test_an_output_changed_in_place_is_kept_as_changed():
    grads = []
    for context in (KEPT, recomputed):
        x = torch.linspace(-1, 1, 2 * 8 * 25).reshape(2, 8, 5, 5).requires_grad_()
        conv, norm = Net().first, FilterResponseNorm2d(8)
        with context():
            z = conv(norm(x).mul_(2).relu_())
        z.square().sum().backward()
        grads.append([x.grad, conv.weight.grad])
    same(*grads)


def test_a_parameter_changed_before_backward_is_told():
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    conv, norm = nn.Conv2d(8, 8, 1), FilterResponseNorm2d(8)
    with recomputed():
        z = conv(norm(x))
    with torch.no_grad():
        norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_contexts_nest_and_end():
    net = Net()

    def call(net, x):
        enter()
        with recomputed():
            y = net.norm(net.first(x))
        y = net(net.left(y))
        leave()
        leave()  # one too many does no harm
        return y

    def plain(net, x):
        return net(net.left(net.norm(net.first(x))))

    same(gradients(net, KEPT, plain), gradients(net, KEPT, call))
