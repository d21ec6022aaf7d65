"""A warning names norms that need a batch, if workers see single images."""

import pytest
from detectron2.modeling import build_model

from normdet.config import load_config
from normdet.engine.summary import batch_of_one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "opts", "workers", "named"),
    [
        ("BN", ["SOLVER.IMS_PER_BATCH", 1], 1, "BN"),
        ("BN", ["SOLVER.IMS_PER_BATCH", 2], 2, "BN"),
        ("BN", ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATE_STEPS", 2], 1, "BN"),
        ("SyncBN", ["SOLVER.IMS_PER_BATCH", 1], 1, "SyncBN"),
        ("BRN+TLU", ["SOLVER.IMS_PER_BATCH", 1], 1, "BRN+TLU"),
        ("BRN", ["SOLVER.IMS_PER_BATCH", 2, "MODEL.NORMDET.BRN.SYNC", True], 2, ""),
        ("SyncBN", ["SOLVER.IMS_PER_BATCH", 2], 2, ""),
        ("BN", ["SOLVER.IMS_PER_BATCH", 2], 1, ""),
        ("GN", ["SOLVER.IMS_PER_BATCH", 1], 1, ""),
        ("FRN+TLU", ["SOLVER.IMS_PER_BATCH", 1], 1, ""),
        ("FrozenBN", ["SOLVER.IMS_PER_BATCH", 1], 1, ""),
    ],
)
def test_it_names_the_norm_and_those_that_need_one_image(norm, opts, workers, named):
    cfg = load_config("quickstart/base.yaml", ["MODEL.DEVICE", "cpu", *opts], norm=norm)
    warning = batch_of_one(cfg, build_model(cfg), workers)
    assert bool(warning) == bool(named)
    if named:
        assert f", and {named} takes" in warning and "GN" in warning and "FRN" in warning
        assert "SyncBN" not in warning.partition(";")[2]
