"""FPN over fewer stages than detectron2's builder expects."""

import pytest
import torch
from detectron2.modeling import build_backbone

from normdet.config import load_config


@pytest.mark.parametrize("norm", ["FrozenBN", "FRN+TLU"])
@pytest.mark.parametrize("last", ["res4", "res5"])
def test_the_last_level_is_pooled_from_the_last_there_is(norm, last):
    stages = ["res3", "res4", "res5"][: ["res4", "res5"].index(last) + 2]
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.OUT_FEATURES", stages]
    opts += ["MODEL.FPN.IN_FEATURES", stages, "MODEL.FPN.OUT_CHANNELS", 8]
    backbone = build_backbone(load_config("quickstart/base.yaml", opts, norm=norm))
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 64))
    end, pooled = list(maps)[-2:]
    assert end == last.replace("res", "p") and pooled == f"p{int(last[-1]) + 1}"
    assert torch.equal(maps[pooled], maps[end][..., ::2, ::2])
