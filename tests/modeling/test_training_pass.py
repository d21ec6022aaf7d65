"""Exact statistics: those of all that a norm saw, for every norm with running averages."""

import pytest
import torch
from torch import nn

from normdet.layers import BatchNorm2d
from normdet.layers.population import learning_norms
from normdet.modeling.training_pass import training_pass, update_statistics
from normdet.options import METHODS, names, parse
from tests.workers import run_workers

RUNNING = [
    name for name in names("norm")
    if learning_norms(parse(name).build_norm(4)) or METHODS[name].needs_batch
]  # fmt: skip


def batches(sizes=(2, 5, 1)):
    torch.manual_seed(0)
    return [torch.randn(n, 4, 6, 5) * (n + 1) + n for n in sizes]


def exact(inputs):
    rows = torch.cat([x.double().movedim(1, -1).flatten(0, -2) for x in inputs])
    return rows.mean(0), rows.var(0, correction=0)


def trained(name):
    """A norm in the middle of its training: a BRN half open, averages of something else."""
    torch.manual_seed(0)  # a mixture's start is random
    norm = parse(name).build_norm(4)
    norm.running_mean.fill_(0.5)
    if norm.running_var is not None:
        norm.running_var.fill_(2.0)
    if name == "BRN":
        norm.steps.fill_(15_000)
    return norm


def test_every_norm_with_running_averages_is_known():
    expected = {"BN", "SyncBN", "BRN", "BIN", "SwitchNorm", "EvalNorm", "InPlaceABN", "MeanOnlyBN"}
    expected |= {"MABN", "EvoNormB0", "AttentiveBN"}
    assert expected <= set(RUNNING)


@pytest.mark.parametrize("name", RUNNING)
def test_averages_become_the_moments_of_all_batches(name):
    norm, inputs = trained(name).eval(), batches()
    momentum = norm.momentum
    assert update_statistics(norm, inputs) == [""]
    mean, var = exact(inputs)
    if name == "MABN":  # its centre stays, and the square is about that
        mean, var = torch.full_like(mean, 0.5), var + (mean - 0.5).square()
    torch.testing.assert_close(norm.running_mean.double(), mean, atol=1e-5, rtol=1e-5)
    if norm.running_var is not None:
        torch.testing.assert_close(norm.running_var.double(), var, atol=1e-5, rtol=1e-5)
    assert norm.momentum == momentum and not norm.training and not norm._forward_hooks


@pytest.mark.parametrize("name", RUNNING)
def test_while_watched_a_norm_computes_as_in_training(name):
    inputs, outputs = batches(), []
    update_statistics(norm := trained(name), inputs, lambda x: outputs.append(norm(x)))
    for x, y in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(y, trained(name).train()(x))


def test_a_frozen_norm_keeps_its_statistics():
    frozen, other = parse("BRN").build_norm(4).frozen(), BatchNorm2d(4)
    model = nn.Sequential(frozen, other)
    assert update_statistics(model, batches()) == ["1"]
    assert not frozen.running_mean.any()


def test_nothing_seen_changes_nothing():
    norm = trained("BN")
    assert update_statistics(norm, [torch.zeros(0, 4, 6, 5)]) == []
    assert (norm.running_mean == 0.5).all() and (norm.running_var == 2).all()


def test_a_pass_leaves_no_trace():
    model = nn.Sequential(BatchNorm2d(4), nn.Dropout(0.5)).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    training_pass(model, batches(), lambda x: setattr(model, "seen", model(x)))
    assert not hasattr(model, "seen") and not model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def in_worker(rank):
    norm = trained("BN")
    update_statistics(norm, batches()[rank::2])
    return norm.state_dict()


@pytest.mark.slow
def test_every_process_ends_with_the_moments_of_all():
    one, other = run_workers(in_worker, 2)
    mean, var = exact(batches())
    for state in (one, other):
        torch.testing.assert_close(state["running_mean"].double(), mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state["running_var"].double(), var, atol=1e-5, rtol=1e-5)
