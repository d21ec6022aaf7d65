"""Training anneals a converted network's stored moments away, and nothing of them stays."""

import signal

import pytest
import torch

from normdet.convert import Settings, convert
from normdet.engine import Interrupted, Trainer
from normdet.engine.leave_stored import LeaveStored
from normdet.layers import FilterResponseNorm2d, StoredMoments
from normdet.weights import load_file, save_file

from .test_trainer import finished, same, send, untested  # noqa: F401


class Run:
    """A trainer as the hook sees it."""

    def __init__(self, max_iter):
        self.iter, self.max_iter, self.curve, self.storage = 0, max_iter, [], self

    def put_scalar(self, name, value, smoothing_hint):
        self.curve.append(value)


def norm_with_stored():
    norm = FilterResponseNorm2d(3)
    norm.stored = StoredMoments(torch.zeros(3), torch.ones(3))
    return norm


@pytest.mark.parametrize(("until", "curve"), [(0.5, [0, 0.5, 1.0]), (1.0, [0, 0.25, 0.5, 0.75, 1])])
def test_t_follows_the_iteration(until, curve):
    run, norm = Run(5), norm_with_stored()
    hook = LeaveStored(torch.nn.Sequential(norm), until=until)
    hook.trainer = run
    hook.before_train()
    for run.iter in range(5):
        hook.before_step()
        if norm.stored is not None:
            assert float(norm.stored.t) == pytest.approx(run.curve[-1])
    assert run.curve == pytest.approx(curve)
    assert norm.stored is None


def test_a_model_without_stored_moments_has_no_curve():
    run = Run(3)
    hook = LeaveStored(torch.nn.Sequential(FilterResponseNorm2d(3)), until=0.5)
    hook.trainer = run
    hook.before_train()
    hook.before_step()
    assert not run.curve


@pytest.mark.slow
def test_a_resumed_annealing_equals_the_one_that_was_not_stopped(
    untested, tmp_path  # noqa: F811
):  # fmt: skip
    bn = untested("bn", norm="BN")
    save_file({"model": Trainer.build_model(bn).state_dict()}, tmp_path / "bn.pth")
    bn.MODEL.WEIGHTS = str(tmp_path / "bn.pth")
    convert(bn, Settings("FRN+TLU", "annealed")).save(tmp_path / "annealed.pth")

    def trainer(name):
        cfg = untested(name, norm="FRN+TLU")
        cfg.MODEL.WEIGHTS = str(tmp_path / "annealed.pth")
        built = Trainer(cfg)
        built.resume_or_load(resume=True)
        return cfg, built

    whole, built = trainer("whole")
    built.train()
    stopped, built = trainer("stopped")
    built.register_hooks([send(signal.SIGTERM, iteration=0)])
    with pytest.raises(Interrupted):
        built.train()
    half = load_file(built.checkpointer.get_checkpoint_file())["model"]
    assert any(key.endswith("stored.t") for key in half)
    stopped, built = trainer("stopped")
    built.train()
    assert same(finished(whole)["model"], finished(stopped)["model"])
    assert not any(".stored." in key for key in finished(whole)["model"])
