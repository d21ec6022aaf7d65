"""The average of a model over its steps: it is evaluated, saved and resumed."""

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from normdet.arguments import train_arguments
from normdet.engine import Interrupted, Trainer
from normdet.engine.ema import ModelAverage
from normdet.errors import NormdetError
from normdet.layers import FilterResponseNorm2d, StoredMoments
from normdet.options import parse
from tests.workers import run_workers

from .test_trainer import finished, same, send, untested  # noqa: F401

AVERAGED = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.9)
# A norm or weight method of each kind that keeps buffers, and some that keep none.
NORMS = ["GN", "FRN+TLU", "FRN+TLU+WS", "BN", "SyncBN", "BRN", "BIN", "SwitchNorm", "EvalNorm",
         "MeanOnlyBN+WN", "BN+SpectralNorm", "GN+AWS", "FrozenBN", "InPlaceABN"]  # fmt: skip


def unit(norm: str) -> nn.Module:
    torch.manual_seed(0)
    option = parse(norm)
    conv = option.build_weight(nn.Conv2d(3, 8, 3))
    return nn.Sequential(conv, option.build_norm(8, activate=True), nn.Conv2d(8, 1, 1))


def steps(model: nn.Module, average: ModelAverage, share: slice = slice(None)) -> Iterator[dict]:
    """Train on a share of each of four batches; return the training model after each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    average.before_train()
    for _ in range(4):
        images = torch.randn(4, 3, 6, 6, generator=generator).to(dtype)[share]
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        average.after_step()
        yield {key: value.clone() for key, value in average.state_dict()["trains"].items()}


@pytest.mark.parametrize("norm", NORMS)
def test_weights_and_running_averages_are_averaged_and_all_else_is_copied(norm):
    model = unit(norm).train()
    average = ModelAverage(model, 0.5)
    learned = {name for name, _ in model.named_parameters()}
    want: dict[str, torch.Tensor] = {}
    for n, state in enumerate(steps(model, average)):
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        for key, value in state.items():
            mean = key in learned or key.endswith(("running_mean", "running_var"))
            want[key] = want[key] * decay + value * (1 - decay) if mean and n else value
    got = average.module.state_dict()
    assert got.keys() == want.keys()
    for key, value in got.items():
        torch.testing.assert_close(value, want[key], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(got[key], state[key]) for key in learned) or not learned


def test_converted_norms_and_their_average_drop_what_they_leave():
    from normdet.engine.leave_stored import LeaveStored

    model = nn.Sequential(nn.Conv2d(3, 3, 1), FilterResponseNorm2d(3))
    source = {**model.state_dict(), "1.stored.t": torch.zeros(())}
    source |= {"1.stored.mean": torch.ones(3), "1.stored.var": torch.ones(3)}
    average = ModelAverage(model, 0.9)
    model.load_state_dict(source)  # after the average was made, as the trainer does
    average.before_train()
    assert isinstance(average.module[1].stored, StoredMoments)
    hook = LeaveStored(model, average.module, until=1.0)
    hook.trainer = SimpleNamespace(iter=0, max_iter=3, storage=SimpleNamespace(
        put_scalar=lambda *a, **k: None))  # fmt: skip
    hook.before_train()
    for hook.trainer.iter in range(3):
        hook.before_step()
        average.after_step()
    assert model[1].stored is None and average.module[1].stored is None
    assert same(average.module.state_dict(), model.state_dict())


@pytest.mark.slow
def test_a_run_evaluates_and_saves_the_average(untested, tiny_cfg, monkeypatch):  # noqa: F811
    plain, averaged = untested("plain", norm="GN"), tiny_cfg(*AVERAGED, norm="GN")
    judged = []
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda _, m: judged.append(m) or {}))
    for cfg in (plain, averaged):
        trainer = Trainer(cfg)
        trainer.train()
    assert judged == [trainer.average.module]
    one, other = finished(plain), finished(averaged)
    trains = other["trainer"]["hooks"]["ModelAverage"]["trains"]
    assert same(one["model"], trains)  # the training model is the same as without an average
    assert not same(one["model"], other["model"])
    assert one["model"].keys() == other["model"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["BN", "FRN+TLU"])
def test_a_stopped_run_that_is_resumed_has_the_average_of_the_one_that_was_not(
    untested, norm  # noqa: F811
):  # fmt: skip
    whole = untested("whole", *AVERAGED, norm=norm)
    Trainer(whole).train()
    cfg = untested("stopped", *AVERAGED, norm=norm)
    trainer = Trainer(cfg)
    trainer.register_hooks([send(signal.SIGTERM, iteration=1)])
    with pytest.raises(Interrupted):
        trainer.train()
    with pytest.raises(NormdetError, match="SOLVER.EMA.ENABLED True"):
        without = cfg.clone()
        without.defrost()
        without.SOLVER.EMA.ENABLED = False
        Trainer(without).resume_or_load(resume=True)
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    resumed.train()
    ours, theirs = finished(cfg), finished(whole)
    assert same(ours["model"], theirs["model"]) and same(ours["trainer"], theirs["trainer"])


def averaged(norm: str, wrap=lambda model: model, share: slice = slice(None)) -> dict:
    model = wrap(unit(norm).double())
    average = ModelAverage(model, 0.9)
    list(steps(model, average, share))
    return dict(average.module.state_dict())


def _of_two(rank: int, norm: str) -> dict:
    return averaged(norm, nn.parallel.DistributedDataParallel, slice(rank, None, 2))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["GN", "FRN+TLU", "SyncBN"])
def test_two_processes_have_the_average_of_one(norm):
    want = averaged("BN" if norm == "SyncBN" else norm)
    for found in run_workers(_of_two, 2, norm):
        for key, value in want.items():
            torch.testing.assert_close(found[key], value)


def test_the_flag_sets_the_key(tiny_config):
    assert train_arguments(["--config-file", str(tiny_config), "--ema"]).ema
    assert not train_arguments(["--config-file", str(tiny_config)]).ema


def test_a_decay_of_one_is_refused(tiny_cfg):
    with pytest.raises(NormdetError, match=r"SOLVER.EMA.DECAY is 1.0, it must be"):
        tiny_cfg("SOLVER.EMA.DECAY", 1.0)
