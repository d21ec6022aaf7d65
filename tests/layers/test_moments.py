"""Norms of batch statistics compute between two passes, which keep only their input."""

import copy

import pytest
import torch

from normdet import layers
from normdet.options import METHODS, names, parse
from tests.layers.kept import kept_buffers

NORMS = [name for name in names("norm") if METHODS[name].params.get("SYNC") is not None]
# Those with one affine for all examples.
PLAIN = [name for name in NORMS if "MIXTURE" not in METHODS[name].params]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_buffer_of_activation_size_is_kept(name, dtype):
    x = torch.randn(4, 8, 9, 9, dtype=dtype, requires_grad=True)
    assert kept_buffers(parse(name).build_norm(8), x) == 1


@pytest.mark.parametrize("name", NORMS)
def test_a_large_mean_does_not_cancel(name):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 9, 9)
    norm = parse(name).build_norm(8)
    far = copy.deepcopy(norm).double()(x.double() + 1e3)
    torch.testing.assert_close(norm(x + 1e3).double(), far, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NORMS)
def test_running_averages_are_those_of_batch_norm(name):
    """So weights and averages pass from one to the other."""
    torch.manual_seed(0)
    plain, norm = layers.BatchNorm2d(4), parse(name, {name: {"MOMENTUM": 0.1}}).build_norm(4)
    for _ in range(3):
        x = torch.randn(2, 4, 5, 5) * 2 + 1
        plain(x), norm(x)
    state = norm.state_dict()
    for key, value in plain.state_dict().items():
        if key in ("weight", "bias") and name not in PLAIN:
            continue
        if key in state or name != "MeanOnlyBN":
            torch.testing.assert_close(state[key], value, msg=key)


@pytest.mark.parametrize("name", ["BN", "AttentiveBN", "EvoNormB0"])
def test_levels_share_affines_and_not_statistics(name):
    torch.manual_seed(0)
    levels = parse(name).build_norm(4, activate=True, levels=2)
    near, far = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 2, 2) * 3 + 1
    alone = parse(name).build_norm(4, activate=True)
    state = {k.removeprefix("0."): v for k, v in levels.state_dict().items() if k[:2] != "1."}
    alone.load_state_dict(state)
    torch.testing.assert_close(levels(near), copy.deepcopy(alone)(near))
    torch.testing.assert_close(levels(far), alone(far))
    torch.testing.assert_close(levels[1].running_var, alone.running_var)
    assert not torch.equal(levels[0].running_var, levels[1].running_var)
    if name == "AttentiveBN":
        assert len(list(levels.parameters())) == len(list(alone.parameters()))


@pytest.mark.parametrize("name", PLAIN)
def test_affine_may_be_missing(name):
    """As in a head whose levels share the affine."""
    torch.manual_seed(0)
    norm, bare = parse(name).build_norm(4), parse(name).build_norm(4)
    bare.weight = bare.bias = None
    x = torch.randn(3, 4, 5, 5)
    for training in (True, False):
        want = norm.train(training)(x)
        torch.testing.assert_close(bare.train(training)(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_a_frozen_norm_stays_in_test_mode(name):
    norm = parse(name).build_norm(4)
    norm(torch.randn(3, 4, 5, 5) * 2 + 1)
    x = torch.randn(2, 4, 5, 5)
    want = norm.eval()(x)
    frozen = layers.freeze_batch_norm(torch.nn.Sequential(norm)).train()
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    torch.testing.assert_close(frozen(x), want)
    layers.after_step(frozen)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
