"""`normdet train` starts new norms from its own images, once, and alike in every process."""

import pytest
import torch
from detectron2.modeling import build_model

from normdet.config import load_config
from normdet.data import register_datasets
from normdet.engine import Trainer
from normdet.engine.loader import build_train_loader
from normdet.engine.start import start_norms
from normdet.errors import NormdetError
from tests.workers import run_workers

from .test_trainer import same, untested  # noqa: F401


def started_model(cfg):
    register_datasets(cfg)
    torch.manual_seed(3)
    model = build_model(cfg)
    images = build_train_loader(cfg, seed=5).dataset
    return start_norms(cfg, model, images, seed=5), model.state_dict()


def in_worker(rank, path, text, count):
    cfg = load_config(path, ["SOLVER.IMS_PER_BATCH", count], text)
    torch.manual_seed(rank)  # earlier draws of a process must not matter
    return started_model(cfg)[1]


def head_norms(trainer):
    norms = dict(trainer.model.named_modules())
    return [norms[name] for name in ("backbone.fpn_output4.norm", "roi_heads.box_head.fc1")]


@pytest.mark.slow
def test_norms_start_once_and_the_checkpoint_keeps_them(untested, caplog):  # noqa: F811
    cfg = untested("first", "SOLVER.MAX_ITER", "2", norm="GN")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)  # nothing is there to resume
    assert {name.split(".")[0] for name in trainer.started} == {"backbone", "roi_heads"}
    assert not any("box_head" in name or "bottom_up" in name for name in trainer.started)
    trainer.train()
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert not again.started
    assert same(again.model.state_dict(), trainer.model.state_dict())


def test_it_repeats_itself_and_draws_nothing_from_the_run(untested):  # noqa: F811
    cfg = untested("repeat", norm="FRN+TLU")
    state = torch.random.get_rng_state()
    names, first = started_model(cfg)
    torch.random.set_rng_state(state)
    torch.rand(3)
    assert names and same(first, started_model(cfg)[1])


def test_no_images_leave_norms_as_they_are_built(untested):  # noqa: F811
    cfg = untested("off", "MODEL.NORMDET.START.IMAGES", "0", norm="GN")
    names, state = started_model(cfg)
    assert names == [] and (state["backbone.fpn_output4.norm.weight"] == 1).all()


def test_unknown_parts_are_refused(untested):  # noqa: F811
    with pytest.raises(NormdetError, match=r"START: unknown part 'heads'"):
        untested("parts", "MODEL.NORMDET.START.PARTS", "('heads',)")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["GN", "SyncBN"])
def test_every_process_starts_alike(tiny_config, text):
    one, other = run_workers(in_worker, 2, str(tiny_config), text, 4)
    assert same(one, other)
    changed = one["backbone.fpn_output4.norm.weight"]
    assert (changed != 1).all() and changed.isfinite().all()
