"""LazyConfig: the ready configs build the stated norms and train; callables lose nothing."""

import functools
from pathlib import Path

import pytest
import torch
from detectron2 import modeling
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.backbone import BasicStem

import normdet
from normdet import NormdetError
from normdet.engine import lazy
from normdet.layers import FilterResponseNorm2d, NormLayer
from tests.surgery.networks import detectron2_inputs, zoo

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lazy"


def config(name: str):
    zoo("common/models/mask_rcnn_fpn.py")  # or skip
    cfg = LazyConfig.load(str(CONFIGS / name))
    cfg.train.device = "cpu"
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [path.name for path in sorted(CONFIGS.glob("*.py")) if path.name != "base.py"]
)
def test_a_ready_config_builds_and_decays_no_norm(name, tmp_path):
    cfg = config(name)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    model, optimizer = lazy.build(cfg)
    option = cfg.model.norm
    norms = [m for m in model.modules() if isinstance(m, NormLayer) and hasattr(m, "eps")]
    assert {m.option for m in norms} == {option}
    assert model.roi_heads.box_head.conv1.norm.option == option
    assert model.backbone.fpn_output3.norm.option == option
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    taken = [p for m in norms for p in m.parameters(recurse=False) if p.requires_grad]
    assert taken and {decay[p] for p in taken} == {0.0}


def batches() -> list[list[dict]]:
    return [detectron2_inputs()] * 4


@pytest.mark.slow
def test_two_steps(tmp_path):
    cfg = config("mask_rcnn_R_50_FPN_3x_frn_tlu.py")
    cfg.train.update(max_iter=2, output_dir=str(tmp_path), init_checkpoint="", eval_period=0)
    cfg.dataloader = {"train": L(batches)()}
    cfg.model.model.roi_heads.batch_size_per_image = 16
    lazy.train(cfg)
    assert (tmp_path / "model_final.pth").exists()


def stem(norm) -> torch.nn.Module:
    return instantiate(L(BasicStem)(in_channels=3, out_channels=8, norm=norm))


# detectron2 v0.6 makes a DictConfig of an option, and calls it.
takes_options = pytest.mark.skipif(
    not hasattr(modeling, "ViT"), reason="this detectron2 takes no objects in a LazyCall"
)


@takes_options
def test_a_callable_that_would_lose_an_activation_is_refused():
    for option in ("FRN+TLU", "GN+WS"):
        build = normdet.parse(option).build_norm
        for norm in (build, functools.partial(build), normdet.parse(option)):
            with pytest.raises(NormdetError, match="loses (TLU|WS).*normdet.normalize"):
                stem(norm)


@takes_options
def test_a_norm_alone_may_be_a_callable():
    assert isinstance(stem(normdet.parse("FRN")).conv1.norm, FilterResponseNorm2d)
    assert isinstance(stem(normdet.parse("FRN").build_norm).conv1.norm, FilterResponseNorm2d)
