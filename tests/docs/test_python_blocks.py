"""The Python of the pages runs, block after block as a reader would type it.

Training is cut to two steps of small images, and weights from detectron2's servers are not fetched:
the model keeps its start values. Without a GPU configs name the CPU. All else is real.
"""

import shutil

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import defaults
from detectron2.engine import DefaultTrainer

from normdet import options

from .pages import blocks, pages_with


@pytest.fixture
def place(tmp_path, monkeypatch, quickstart_data):
    """A folder with the data of the pages, in which training is short."""
    shutil.copytree(quickstart_data, tmp_path / "my_data")
    monkeypatch.chdir(tmp_path)
    methods = dict(options.METHODS)
    if not torch.cuda.is_available():
        monkeypatch.setitem(defaults._C.MODEL, "DEVICE", "cpu")
    load, build = DetectionCheckpointer.load, DefaultTrainer.__init__

    def load_local(self, path, *args, **kwargs):
        return load(self, "" if path.startswith("detectron2://") else path, *args, **kwargs)

    def short(self, cfg):
        cfg = cfg.clone()
        cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.DATALOADER.NUM_WORKERS = 2, (), 0
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
        build(self, cfg)

    monkeypatch.setattr(DetectionCheckpointer, "load", load_local)
    monkeypatch.setattr(DefaultTrainer, "__init__", short)
    yield tmp_path
    options.METHODS.clear()
    options.METHODS.update(methods)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"))
def test_every_block_runs(page, place):
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        code = compile("\n" * block.line + block.text, page, "exec")
        exec(code, names)
