"""Training on labelled images repeats itself when resumed, and accuracy counts what it should."""

import shutil
import signal

import pytest
import torch

from normdet.engine import Interrupted
from normdet.pretrain.trainer import PretrainTrainer
from tests.engine.test_trainer import finished, same, send

from .tiny import config


@pytest.mark.slow
def test_a_resumed_run_equals_the_one_that_was_not_stopped(data, tmp_path):
    mixed = ["PRETRAIN.MIXUP", "0.2", "PRETRAIN.LABEL_SMOOTHING", "0.1"]
    whole = config(data, tmp_path / "whole", *mixed)
    PretrainTrainer(whole).train()
    cfg = config(data, tmp_path / "stopped", *mixed)
    trainer = PretrainTrainer(cfg)
    trainer.register_hooks([send(signal.SIGTERM, iteration=1)])
    with pytest.raises(Interrupted, match="after 2 of 4 iterations"):
        trainer.train()
    resumed = PretrainTrainer(cfg)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert same(finished(cfg)["model"], finished(whole)["model"])


class Constant(torch.nn.Module):
    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, batch):
        return [{"scores": torch.full((2,), self.score)} for _ in batch]


@pytest.mark.parametrize("score", [0.0, float("nan")])
def test_equal_scores_are_no_hits(data, tmp_path, score):
    found = PretrainTrainer.test(config(data, tmp_path), Constant(score))
    assert found == {"classification": {"top-1": 0.0}}


def test_images_that_cannot_be_read_are_left_out_and_named(data, tmp_path, caplog):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "dark" / "05.png").write_bytes(b"no image")  # held out
    PretrainTrainer.test(config(folder, tmp_path), Constant(0.0))
    assert "1 images are left out" in caplog.text and "05.png" in caplog.text
