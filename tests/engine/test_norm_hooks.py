"""The trainer tells norms of each step and logs their statistics."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks
from torch import nn

from normdet import layers
from normdet.cli import main
from normdet.engine import Trainer
from normdet.engine.launch import Interrupted
from normdet.engine.norm_hooks import NormScalars
from normdet.weights import load_file


@pytest.mark.slow
def test_schedules_count_steps_survive_resume_and_shares_are_logged(tiny_config, tmp_path):
    brn = ["MODEL.NORMDET.BRN.WARMUP", "1", "MODEL.NORMDET.BRN.OPEN", "2", "DATASETS.TEST", "()"]
    config = ["--config-file", str(tiny_config), "--norm", "BRN"]
    run = [*config, "OUTPUT_DIR", f"{tmp_path}/brn", *brn]
    assert main(["train", *run, "SOLVER.MAX_ITER", "2"]) == 0
    assert main(["train", "--resume", *run, "SOLVER.MAX_ITER", "3"]) == 0
    state = load_file(tmp_path / "brn" / "model_final.pth")["model"]
    steps = [int(value) for key, value in state.items() if key.endswith("norm.steps")]
    assert steps and set(steps) == {3}

    run = ["--config-file", str(tiny_config), "OUTPUT_DIR", f"{tmp_path}/switch"]
    opts = ["SOLVER.MAX_ITER", "20", "DATASETS.TEST", "()", "MODEL.RESNETS.NORM", "SwitchNorm"]
    opts += ["MODEL.NORMDET.STATISTICS_PERIOD", "10"]
    assert main(["train", *run, *opts]) == 0
    line = json.loads((tmp_path / "switch" / "metrics.json").read_text().splitlines()[-1])
    curves = {key: value for key, value in line.items() if "res2.0.conv1.norm/" in key}
    assert {key.rpartition("/")[2] for key in curves} == {
        "mean_in", "mean_ln", "mean_bn", "var_in", "var_ln", "var_bn",
        "clamped", "rms", "gamma_mean", "gamma_min", "gamma_max",
    }  # fmt: skip
    shares = {key: value for key, value in curves.items() if re.search("/(mean|var)_", key)}
    assert sum(shares.values()) == pytest.approx(2, abs=1e-4)


class Run:
    """A trainer as a hook sees it."""

    def __init__(self):
        self.iter = 0
        self.put = {}
        self.storage = self

    def put_scalar(self, name, value, smoothing_hint):
        self.put[name] = value


def step(hook, run, model, *batches) -> dict:
    """One step of `run`; what the hook wrote in it."""
    run.put = {}
    hook.trainer = run
    hook.before_step()
    for x in batches:
        model(x)
    hook.after_step()
    run.iter += 1
    return run.put


def test_statistics_are_those_of_the_measured_step():
    norm = layers.FilterResponseNorm2d(4, activation="TLU")
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -3.0, 2.0, 0.5]))
        norm.tau.copy_(torch.tensor([-9.0, 9.0, 0.0, 1.0]))
    model = nn.Sequential(norm)
    hook, run = NormScalars(model, 2), Run()
    small, large = torch.randn(2, 4, 5, 5), torch.randn(1, 4, 8, 3)
    assert step(hook, run, model, small) == {}
    put = step(hook, run, model, small, large)
    outputs = [norm(x).detach() for x in (small, large)]
    values = torch.cat([y.transpose(0, 1).flatten(1) for y in outputs], 1)
    assert put.keys() == {
        "0/clamped", "0/rms", "0/gamma_mean", "0/gamma_min", "0/gamma_max", "0/tau_mean",
    }  # fmt: skip
    held = (values == norm.tau[:, None]).float().mean()
    assert held > 0.25 and put["0/clamped"] == pytest.approx(float(held))
    assert put["0/rms"] == pytest.approx(float(values.square().mean().sqrt()), rel=1e-5)
    assert put["0/gamma_mean"] == pytest.approx(0.125)
    assert (put["0/gamma_min"], put["0/gamma_max"]) == (-3, 3)
    assert put["0/tau_mean"] == pytest.approx(0.25)
    assert step(hook, run, model, small) == {}


def test_nothing_stays_behind_a_measurement():
    model = nn.Sequential(layers.GroupNorm(2, 4, activation="ReLU"))
    hook, run = NormScalars(model, 2), Run()
    run.iter = 1
    hook.trainer = run
    hook.before_step()
    assert model[0]._forward_hooks
    hook.after_train()  # the step broke off
    assert not model[0]._forward_hooks
    hook.before_step()
    state = torch.get_rng_state()
    model(torch.ones(1, 4, 2, 2))
    hook.after_step()
    assert not model[0]._forward_hooks and torch.equal(torch.get_rng_state(), state)
    assert NormScalars(model, 0) and step(NormScalars(model, 0), Run(), model) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_empty_head_and_low_precision_are_measured(dtype):
    model = nn.Sequential(layers.FilterResponseNorm2d(4, activation="TLU"))
    put = step(NormScalars(model, 1), Run(), model, torch.zeros(0, 4, 2, 2, dtype=dtype))
    assert put["0/clamped"] == put["0/rms"] == 0
    with torch.no_grad():
        model[0].tau.fill_(0.3)  # no number of bfloat16
    put = step(NormScalars(model, 1), Run(), model, torch.full((1, 4, 2, 2), -1, dtype=dtype))
    assert put["0/clamped"] == 1


def test_frozen_gamma_is_no_curve_and_blocks_ends_are():
    model = nn.ModuleDict({"norm": layers.FrozenBatchNorm2d(4), "join": layers.AddAct(4, "TLU")})

    def forward(x):
        return model["join"](model["norm"](x), -x)

    put = step(NormScalars(model, 1), Run(), forward, torch.ones(1, 4, 2, 2))
    assert put.keys() == {"norm/rms", "join/rms", "join/clamped", "join/tau_mean"}
    assert put["join/rms"] < 1e-4 and put["norm/rms"] == pytest.approx(1, rel=1e-4)


@pytest.mark.slow
def test_measuring_changes_no_weight(tiny_cfg):
    """A run is the same bit for bit with and without measurements."""
    states = []
    for period in (0, 1):
        opts = ["MODEL.NORMDET.STATISTICS_PERIOD", period, "SOLVER.MAX_ITER", 2]
        cfg = tiny_cfg(*opts, "DATASETS.TEST", (), norm="FRN+TLU")
        cfg.OUTPUT_DIR += str(period)
        Path(cfg.OUTPUT_DIR).mkdir()
        trainer = Trainer(cfg)
        trainer.train()
        states.append(trainer.model.state_dict())
        assert (Path(cfg.OUTPUT_DIR) / "norms.html").exists() == bool(period)
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.slow
def test_a_stopped_run_leaves_its_page_and_doctor_draws_it_again(tiny_cfg, capsys):
    def interrupt(trainer):
        if trainer.iter == 1:
            os.kill(os.getpid(), signal.SIGINT)

    cfg = tiny_cfg("MODEL.NORMDET.STATISTICS_PERIOD", 1, "DATASETS.TEST", (), norm="FRN+TLU")
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    trainer = Trainer(cfg)
    trainer.register_hooks([hooks.CallbackHook(before_step=interrupt)])
    with pytest.raises(Interrupted):
        trainer.train()
    page = folder / "norms.html"
    text = page.read_text()
    assert "tau_mean" in text and "data:image/png" in text and "http" not in text
    page.unlink()
    assert main(["doctor", "--run", str(folder)]) == 0
    assert page.read_text() == text and str(page) in capsys.readouterr().out
