"""Training on one value per channel is refused before it starts."""

import pytest
from detectron2.modeling import build_model

from normdet.config import load_config
from normdet.engine.one_value import refuse_one_value
from normdet.errors import NormdetError

SMALL = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.DEPTH", 18,
         "MODEL.FPN.OUT_CHANNELS", 64, "SOLVER.IMS_PER_BATCH", 1,
         "INPUT.MIN_SIZE_TRAIN", (128,))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "parts", "opts", "size", "workers", "refused"),
    [
        ("BN", ["retinanet_head"], [], (100, 100), 1, "head.cls_subnet.1.4"),
        ("SyncBN", ["fpn_top"], [], (100, 100), 1, "backbone.top_block"),
        ("SyncBN", ["retinanet_head"], [], (100, 100), 2, ""),
        ("BN", ["backbone"], [], (100, 100), 1, ""),
        ("BN", ["backbone"], ["INPUT.MIN_SIZE_TRAIN", (32,)], (100, 100), 1, "bottom_up.res5"),
        ("BN", ["all"], ["INPUT.TILE", 32, "INPUT.MIN_SIZE_TRAIN", (0,)], (99, 99), 1, "res5"),
        ("BRN", ["retinanet_head"], [], (100, 300), 1, ""),
        ("BN", ["retinanet_head"], ["SOLVER.IMS_PER_BATCH", 2], (100, 100), 1, ""),
        ("FRN+TLU", ["all"], [], (100, 100), 1, ""),
    ],
)
def test_one_value_a_channel_is_refused_before_training(norm, parts, opts, size, workers, refused):
    opts = [*SMALL, "SOLVER.IMS_PER_BATCH", workers, *opts, "MODEL.DEVICE", "cpu"]
    cfg = load_config("coco/retinanet_R_50_FPN_1x.yaml", opts, norm, parts)
    model = build_model(cfg)
    sizes = {(300, 900): "a.png", size: "b.png"}
    if not refused:
        refuse_one_value(cfg, model, sizes, workers)
        return
    with pytest.raises(NormdetError, match=rf"\.png is trained on at .*{refused}.* one value per"):
        refuse_one_value(cfg, model, sizes, workers)
    assert model.training
