"""A run: it trains, evaluates, stops when asked, and goes on as if it had not."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from detectron2.engine import hooks

from normdet.config import load_config
from normdet.engine import Interrupted, NonFiniteLoss, Trainer
from normdet.engine.trainer import scale_to_workers
from normdet.errors import NormdetError
from normdet.weights import load_file


def send(number, iteration):
    """A hook that sends this process a signal in the middle of a step."""

    def act(trainer):
        if trainer.iter == iteration:
            os.kill(os.getpid(), number)

    return hooks.CallbackHook(before_step=act)


def finished(cfg):
    return load_file(Path(cfg.OUTPUT_DIR, "model_final.pth"))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def untested(tiny_cfg):
    """Configs without evaluation, each with its folder under the given one."""

    def make(name, *opts, norm=None):
        cfg = tiny_cfg("DATASETS.TEST", "()", *opts, norm=norm)
        cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}-{name}"
        return cfg

    return make


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_that_is_resumed_equals_the_one_that_was_not(untested, number):
    whole = untested("whole", norm="FRN+TLU")
    Trainer(whole).train()

    cfg = untested("stopped", norm="FRN+TLU")
    trainer = Trainer(cfg)
    trainer.register_hooks([send(number, iteration=1)])
    with pytest.raises(Interrupted, match=r"after 2 of 4 iterations; .*model_0000001\.pth") as end:
        trainer.train()
    assert end.value.signal == number

    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    ours, theirs = finished(cfg), finished(whole)
    for key in ("model", "trainer"):
        assert same(ours[key], theirs[key]), key


@pytest.mark.slow
def test_a_run_is_evaluated_and_repeats_itself(tiny_cfg):
    first, second = (Trainer(tiny_cfg("SOLVER.MAX_ITER", "2")) for _ in range(2))
    results = first.train()
    assert set(results) == {"bbox", "segm"} and 0 <= results["bbox"]["AP"] <= 100
    second.train()
    assert same(first.model.state_dict(), second.model.state_dict())


@pytest.mark.slow
def test_a_request_during_evaluation_cuts_it_short(tiny_cfg, monkeypatch):
    cfg = tiny_cfg("TEST.EVAL_PERIOD", "1")
    trainer = Trainer(cfg)
    monkeypatch.setattr(trainer, "test", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=r"after 1 of 4 iterations; .*model_0000000\.pth"):
        trainer.train()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(untested):
    cfg = untested("broken", "SOLVER.CHECKPOINT_PERIOD", "1")
    trainer = Trainer(cfg)

    def spoil(trainer):
        if trainer.iter == 2:
            next(trainer.model.parameters()).data.fill_(float("nan"))

    trainer.register_hooks([hooks.CallbackHook(before_step=spoil)])
    with pytest.raises(NonFiniteLoss, match=r"iteration 2: .*last checkpoint is .*0000001\.pth"):
        trainer.train()
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.slow
def test_accumulation_and_bfloat16_train_a_detector(untested):
    cfg = untested(
        "amp", "SOLVER.ACCUMULATE_STEPS", "2", "SOLVER.AMP.ENABLED", "True",
        "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.MAX_ITER", "2", norm="FRN+TLU",
    )  # fmt: skip
    trainer = Trainer(cfg)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    moved = [k for k in after if k.endswith("weight") and not torch.equal(after[k], before[k])]
    assert len(moved) > 50
    assert all(value.dtype == before[key].dtype for key, value in after.items())


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["GN+WS", "FRN+TLU"])
def test_channels_last_trains_the_same_detector(untested, norm):
    found = []
    for last in (False, True):
        cfg = untested(
            f"last-{last}", "MODEL.NORMDET.CHANNELS_LAST", last, "SOLVER.MAX_ITER", 2, norm=norm
        )
        trainer = Trainer(cfg)
        weight = trainer.model.backbone.bottom_up.res2[0].conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        trainer.train()
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        found.append(finished(cfg)["model"])
    assert all(torch.allclose(a, found[1][key], atol=1e-4) for key, a in found[0].items())


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (["SOLVER.IMS_PER_BATCH", "0"], r"SOLVER\.IMS_PER_BATCH is 0"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "3"], r"REFERENCE_WORLD_SIZE 3 does not divide .* 2"),
        (["SOLVER.AMP.ENABLED", "True"], r"SOLVER\.AMP\.DTYPE float16 needs a GPU"),
    ],
)
def test_a_run_that_cannot_train_is_refused(tiny_cfg, opts, text):
    with pytest.raises(NormdetError, match=text):
        Trainer(tiny_cfg(*opts))


@pytest.mark.parametrize(
    ("opts", "workers", "images", "rate", "iterations"),
    [
        ([], 8, 16, 0.02, 90000),
        ([], 1, 2, 0.0025, 720000),
        (["SOLVER.REFERENCE_WORLD_SIZE", "0"], 1, 16, 0.02, 90000),
        (["SOLVER.IMS_PER_BATCH", "4"], 1, 4, 0.02, 90000),
        (["SOLVER.ACCUMULATE_STEPS", "8"], 1, 16, 0.02, 90000),
    ],
)
def test_a_config_for_eight_workers_fits_those_there_are(
    opts, workers, images, rate, iterations, caplog
):
    cfg = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", opts)
    with caplog.at_level("INFO"):
        cfg = scale_to_workers(cfg, workers)
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (images, iterations)
    assert solver.BASE_LR == pytest.approx(rate)
    said = "SOLVER.IMS_PER_BATCH 16 -> 2" in caplog.text and "is 1:" in caplog.text
    assert said == (images == 2)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["BN", "SwitchNorm"])
def test_exact_statistics_are_taken_at_the_end_and_repeat_themselves(untested, norm, monkeypatch):
    keys = ("TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2")
    states, loaded = [], []
    build = Trainer.build_train_loader
    monkeypatch.setattr(
        Trainer, "build_train_loader", lambda *args: loaded.append(1) or build(*args)
    )
    for name, more in (("a", keys), ("b", keys), ("averages", ())):
        cfg = untested(name, "SOLVER.MAX_ITER", "2", *more, norm=norm)
        Trainer(cfg).train()
        states.append(finished(cfg)["model"])
    assert len(loaded) == len(states), "the data set is read once a run"
    exact, again, averages = states
    assert same(exact, again)
    differing = {key for key in exact if not torch.equal(exact[key], averages[key])}
    assert differing and all("running" in key for key in differing)


@pytest.mark.slow
@pytest.mark.parametrize("most", [10, 0])
def test_an_image_that_breaks_while_training_is_skipped_or_ends_it_with_a_checkpoint(
    untested, tiny_data, tmp_path, caplog, most
):
    shutil.copytree(tiny_data, tmp_path / "data")
    opts = ("DATASETS.ROOT", str(tmp_path / "data"), "DATALOADER.NUM_WORKERS", "0")
    cfg = untested("broken", *opts, "DATALOADER.MAX_BROKEN_IMAGES", str(most))
    trainer = Trainer(cfg)
    # The look at the headers is over.
    (tmp_path / "data" / "images" / "2.png").write_bytes(b"the disk is going")
    trainer.resume_or_load(resume=False)
    if most:
        trainer.train()
        assert finished(cfg)
    else:
        with pytest.raises(NormdetError, match="stopped after .* could not be read.*2.png.*saved"):
            trainer.train()
        assert trainer.checkpointer.has_checkpoint()
    assert caplog.text.count("skipped, another image in its place") == 1


def test_every_bad_image_is_named_before_the_first_step(untested, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    images = tmp_path / "data" / "images"
    (images / "2.png").write_bytes(b"no image")
    content = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(NormdetError, match=r"2 faults:\n.*2\.png.*\n.*3\.png"):
        Trainer(untested("bad", "DATASETS.ROOT", str(tmp_path / "data")))
