"""Checkpoints resume exactly, survive damage, and report what they loaded."""

import json
import pickle
import threading

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer, hooks
from detectron2.layers import FrozenBatchNorm2d
from detectron2.solver import build_lr_scheduler
from detectron2.utils.file_io import PathManager
from torch import nn

from normdet.errors import NormdetError
from normdet.weights import Checkpointer, load_file, save_file
from normdet.weights.importers import CLASSIFIER


class Block(nn.Module):
    """A backbone and a head under detectron2's names."""

    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Module()
        self.backbone.stem.conv1 = nn.Conv2d(3, 4, 1, bias=False)
        self.backbone.stem.conv1.norm = FrozenBatchNorm2d(4)
        self.predictor = nn.Linear(4, classes)

    def forward(self, x):
        stem = self.backbone.stem.conv1
        features = stem.norm(stem(x)).mean((2, 3))
        return {"loss": self.predictor(features).square().mean()}


def batches():
    return [torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(8)]


def make_run(folder, steps=(), seed=0):
    """A trainer as detectron2 makes it, after training on some of the batches."""
    torch.manual_seed(seed)
    model = Block()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 8, (5,), 3
    trainer = SimpleTrainer(model, [], optimizer)
    trainer.register_hooks([hooks.LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer))])
    trainer.before_train()
    checkpointer = Checkpointer(model, str(folder), trainer=trainer)
    run = model, trainer, checkpointer
    train(run, steps)
    return run


def train(run, steps):
    _, trainer, _ = run
    for step in steps:
        trainer.iter = step
        loss = trainer.model(batches()[step])["loss"]
        trainer.optimizer.zero_grad()
        loss.backward()
        trainer.optimizer.step()
        trainer._hooks[0].scheduler.step()  # its hook wants an event storage too


def assert_same(a, b):
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


def test_resume_continues_bit_for_bit(tmp_path):
    straight, *_ = make_run(tmp_path / "none", range(8))
    (tmp_path / "run").mkdir()
    first = make_run(tmp_path / "run", range(4))
    first[2].save("model_0000003", iteration=np.int64(3))
    resumed = make_run(tmp_path / "run", seed=9)
    left = resumed[2].resume_or_load("", resume=True)
    assert left["iteration"] == 3 and resumed[1].iter == 3
    assert resumed[1].optimizer.param_groups[0]["lr"] == first[1].optimizer.param_groups[0]["lr"]
    train(resumed, range(4, 8))
    assert_same(resumed[0], straight)


def test_checkpoints_load_with_torch_alone(tmp_path):
    make_run(tmp_path, range(2))[2].save("m", iteration=1)
    whole = torch.load(tmp_path / "m.pth", weights_only=True)
    assert whole.keys() == {"model", "trainer", "iteration"}
    assert whole["model"]._metadata  # which old versions are told by
    assert (tmp_path / "last_checkpoint").read_text() == "m.pth"


def test_without_resume_only_the_weights_are_taken(tmp_path):
    run = make_run(tmp_path, range(4))
    run[2].save("m", iteration=3)
    fresh = make_run(tmp_path, seed=9)
    fresh[2].resume_or_load(str(tmp_path / "m.pth"), resume=False)
    assert_same(fresh[0], run[0])
    assert fresh[1].optimizer.state_dict()["state"] == {}


def test_a_damaged_last_checkpoint_gives_way_to_the_latest_intact(tmp_path, caplog):
    run = make_run(tmp_path)
    for step in range(3):
        train(run, [step])
        run[2].save(f"model_{step}", iteration=step)
    save_file(run[0].state_dict(), tmp_path / "weights.pth")  # not a checkpoint to resume from
    last = tmp_path / "model_2.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    resumed = make_run(tmp_path, seed=9)
    assert resumed[2].resume_or_load("", resume=True)["iteration"] == 1
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "model_2.pth is damaged" in warning and "resuming from" in warning
    assert "model_1.pth" in warning
    for file in tmp_path.glob("model_*.pth"):
        file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(NormdetError, match=r"model_2\.pth is damaged.* no intact checkpoint"):
        resumed[2].resume_or_load("", resume=True)


def test_a_state_that_does_not_fit_is_told(tmp_path):
    run = make_run(tmp_path, range(2))
    run[2].save("m", iteration=1)
    other = make_run(tmp_path)
    other[1].optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(NormdetError, match=r"m\.pth does not resume this run, its 'trainer' state"):
        other[2].resume_or_load("", resume=True)


def test_saving_clears_what_a_killed_save_left(tmp_path):
    leftover = tmp_path / ".m.pth.1234.normdet-tmp"
    leftover.write_bytes(b"half")
    make_run(tmp_path)[2].save("m")
    assert {p.name for p in tmp_path.iterdir()} == {"m.pth", "last_checkpoint"}


def test_report_names_every_tensor(tmp_path):
    state = Block(classes=7).state_dict()
    del state["predictor.bias"], state["backbone.stem.conv1.norm.weight"]
    state["extra.weight"] = torch.ones(2)
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    checkpointer = Checkpointer(Block())
    checkpointer.load(str(path))
    report = checkpointer.report
    assert report.source == str(path)
    assert report.missing == ["backbone.stem.conv1.norm.weight", "predictor.bias"]
    assert report.unexpected == ["extra.weight"]
    assert report.reinitialized == {"predictor.weight": "(7, 4) in the file, (3, 4) in the model"}
    stem = "backbone.stem.conv1"
    rest = [f"{stem}.norm.{name}" for name in ("bias", "running_mean", "running_var")]
    assert report.matched == [f"{stem}.weight", *rest]
    assert json.loads(json.dumps(report.to_dict()))["matched"] == report.matched
    assert "4 of the model's 7 tensors" in str(report)
    assert "predictor.weight starts anew: (7, 4) in the file" in str(report)
    checkpointer.load("")
    assert not checkpointer.report.matched


def caffe2_file(path, stem_shape=(4, 3, 1, 1)):
    blobs = {
        "conv1_w": np.random.default_rng(0).random(stem_shape).astype("f4"),
        "conv1_w_momentum": np.ones(stem_shape, "f4"),
        "res_conv1_bn_s": np.full(4, 2, "f4"),
        "res_conv1_bn_b": np.full(4, 3, "f4"),
        "pred_w": np.ones((10, 4), "f4"),
    }
    path.write_bytes(pickle.dumps({"blobs": blobs}, 2))
    return blobs


def test_caffe2_names_are_matched(tmp_path):
    blobs = caffe2_file(tmp_path / "R-50.pkl")
    checkpointer = Checkpointer(Block())
    checkpointer.load(str(tmp_path / "R-50.pkl"))
    stem = checkpointer.model.backbone.stem.conv1
    np.testing.assert_array_equal(stem.weight.detach(), blobs["conv1_w"])
    np.testing.assert_array_equal(stem.norm.bias, blobs["res_conv1_bn_b"])
    assert checkpointer.report.unexpected == []
    assert checkpointer.report.left_out == {"pred_w": CLASSIFIER}


def test_misfits_found_by_the_heuristics_are_reported(tmp_path):
    caffe2_file(tmp_path / "R-50.pkl", (4, 3, 7, 7))
    checkpointer = Checkpointer(Block())
    checkpointer.load(str(tmp_path / "R-50.pkl"))
    assert checkpointer.report.reinitialized == {
        "backbone.stem.conv1.weight": "(4, 3, 7, 7) in the file, (4, 3, 1, 1) in the model"
    }
    assert checkpointer.report.unexpected == []
    assert checkpointer.report.left_out == {"pred_w": CLASSIFIER}


def test_a_tensor_with_two_names_counts_as_loaded_under_both(tmp_path):
    model = Block()
    model.twin = model.predictor
    save_file(Block().state_dict(), tmp_path / "w.pth")
    checkpointer = Checkpointer(model)
    checkpointer.load(str(tmp_path / "w.pth"))
    assert "twin.weight" in checkpointer.report.matched
    assert not checkpointer.report.missing


def test_zoo_and_pycls_layouts_load(tmp_path):
    source = Block()
    state = source.state_dict()
    arrays = {k: v.numpy() for k, v in state.items()}
    zoo, pycls = tmp_path / "zoo.pkl", tmp_path / "net.pyth"
    zoo.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    torch.save({"model_state": dict(state), "epoch": 3}, pycls)
    bare = {k.removeprefix("backbone."): v for k, v in state.items()}
    save_file(bare, tmp_path / "bare.pth")
    for path in (zoo, pycls, f"{tmp_path / 'bare.pth'}?matching_heuristics=True"):
        checkpointer = Checkpointer(Block())
        checkpointer.load(str(path))
        assert_same(checkpointer.model, source)
        assert not checkpointer.report.missing


def test_files_come_through_the_path_manager(tmp_path, monkeypatch):
    source = Block()
    save_file(source.state_dict(), tmp_path / "w.pth")
    real = PathManager.get_local_path

    def fetch(path, *args, **kwargs):
        if path.startswith("detectron2://"):
            return str(tmp_path / path.removeprefix("detectron2://"))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", fetch)
    checkpointer = Checkpointer(Block())
    checkpointer.load("detectron2://w.pth")
    assert_same(checkpointer.model, source)
    assert checkpointer.report.source == "detectron2://w.pth"
    with pytest.raises(NormdetError, match=r"detectron2://none\.pth does not exist"):
        checkpointer.load("detectron2://none.pth")
    with pytest.raises(NormdetError, match="catalog://ImageNetPretrained/x cannot be fetched"):
        checkpointer.load("catalog://ImageNetPretrained/x")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"predictor.bias": torch.tensor([0, torch.nan, 1])}, "tensor predictor.bias has NaN"),
        ({"other.weight": torch.ones(3)}, "none of the model's tensors.*'other.weight'"),
        ({"model": [torch.ones(3)]}, "has a list where tensors should be"),
        ({"model": {"predictor.bias": 3}}, "'predictor.bias' is a int, not a tensor"),
        ({"model": {"predictor.bias": torch.ones(3)}, "normdet": 3}, "'normdet' entry"),
    ],
)
def test_refused_weights_leave_the_model_alone(tmp_path, state, message):
    path = tmp_path / "w.pth"
    torch.save(state, path)
    model = Block()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    checkpointer = Checkpointer(model, cfg=get_cfg())
    with pytest.raises(NormdetError, match=rf"w\.pth.*{message}"):
        checkpointer.load(str(path))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    # A refusal does not block the next load.
    save_file(Block().state_dict(), path)
    checkpointer.load(str(path))


def test_config_travels_with_the_checkpoint_and_is_checked(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.NORM = "GN+WS"
    Checkpointer(Block(), str(tmp_path), cfg=cfg).save("m")
    said = load_file(tmp_path / "m.pth")["normdet"]
    assert said["norms"]["MODEL.RESNETS.NORM"] == "GN+WS"
    cfg.MODEL.RESNETS.NORM = "GN"
    checkpointer = Checkpointer(Block(), cfg=cfg)
    with pytest.raises(NormdetError, match=r"with weight standardization .*NORM GN\+WS$"):
        checkpointer.load(str(tmp_path / "m.pth"))
    cfg.MODEL.RESNETS.NORM = "FRN+TLU+WS"
    checkpointer = Checkpointer(Block(), cfg=cfg)
    checkpointer.load(str(tmp_path / "m.pth"))
    (warning,) = checkpointer.report.warnings
    assert "was trained with GN and MODEL.RESNETS.NORM is FRN+TLU" in warning


def warnings_of(caplog):
    found = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    caplog.clear()
    return found


def test_a_resume_with_nothing_to_resume_says_so(tmp_path, caplog):
    run = make_run(tmp_path / "empty")
    run[2].resume_or_load("", resume=True)
    (warning,) = warnings_of(caplog)
    assert f"--resume: {tmp_path}/empty has no checkpoint to resume from" in warning
    assert "starts with its start values" in warning and run[2].resumed == ""
    run[2].resume_or_load("", resume=False)
    assert not warnings_of(caplog)


def test_a_checkpoint_given_as_weights_is_not_taken_for_one_to_resume(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    make_run(tmp_path / "a", range(3))[2].save("m", iteration=2)
    fresh = make_run(tmp_path / "b")
    fresh[2].resume_or_load(str(tmp_path / "a" / "m.pth"), resume=True)
    (warning,) = warnings_of(caplog)
    assert "at iteration 0" in warning
    assert "to go on with its optimizer after iteration 3, set OUTPUT_DIR" in warning


@pytest.mark.parametrize("lost", ["last_checkpoint", "model_2.pth"])
def test_it_resumes_from_the_checkpoints_left_in_its_folder(tmp_path, caplog, lost):
    run = make_run(tmp_path)
    for step in range(3):
        train(run, [step])
        run[2].save(f"model_{step}", iteration=step)
    (tmp_path / lost).unlink()
    resumed = make_run(tmp_path, seed=9)
    last = 2 if lost == "last_checkpoint" else 1
    assert resumed[2].resume_or_load("", resume=True)["iteration"] == last
    assert resumed[2].resumed.endswith(f"model_{last}.pth") and resumed[1].iter == last
    (warning,) = warnings_of(caplog)
    assert f"resuming from {tmp_path}/model_{last}.pth" in warning


def test_two_threads_that_save_at_once_leave_a_whole_checkpoint(tmp_path):
    _, _, checkpointer = make_run(tmp_path)
    failed = []

    def save():
        try:
            for _ in range(5):
                checkpointer.save("model_0000003", iteration=3)
        except NormdetError as error:
            failed.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and load_file(tmp_path / "model_0000003.pth")["iteration"] == 3
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")
