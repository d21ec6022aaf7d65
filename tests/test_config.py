"""The flag, the keys, the files, and what is refused."""

import subprocess
import sys

import pytest
from detectron2.config import get_cfg

import normdet
from normdet.config import config_names, load_config
from normdet.errors import NormdetError
from normdet.keys import BUILDERS, USUAL_PARTS, get, norm_option, normdet_name
from normdet.options import METHODS
from normdet.parts import NORMED


@pytest.fixture
def cfg():
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    return cfg


def norms(cfg) -> dict[str, str]:
    return {name: get(cfg, part.key) for name, part in NORMED.items()}


def test_the_flag_fills_every_usual_part(cfg):
    normdet.set_norm(cfg, "FRN+TLU")
    filled = {part for part, norm in norms(cfg).items() if norm == "FRN+TLU"}
    assert filled == set(USUAL_PARTS) - {"sem_seg_head"}  # which no Mask R-CNN has
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    normdet.set_norm(cfg, "FRN+TLU")
    assert cfg.MODEL.SEM_SEG_HEAD.NORM == "FRN+TLU"
    normdet.set_norm(cfg, "FrozenBN")
    assert cfg.MODEL.SEM_SEG_HEAD.NORM == "GN"  # detectron2's own
    assert str(norm_option(cfg, "res5_head")) == "FrozenBN"  # as the backbone


def test_the_flag_names_our_builders(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    normdet.set_norm(cfg, "GN")
    assert cfg.MODEL.BACKBONE.NAME == "build_normdet_resnet_fpn_backbone"
    assert cfg.MODEL.ROI_BOX_HEAD.NAME == "NormdetFastRCNNConvFCHead"
    assert cfg.MODEL.RPN.HEAD_NAME == "NormdetStandardRPNHead"


def test_every_builder_of_ours_is_registered():
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        ROI_HEADS_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        roi_heads,
    )
    from detectron2.modeling.proposal_generator import (
        PROPOSAL_GENERATOR_REGISTRY,
        RPN_HEAD_REGISTRY,
    )

    registries = {
        "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
        "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
        "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
        "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
        "MODEL.ROI_BOX_HEAD.NAME": roi_heads.ROI_BOX_HEAD_REGISTRY,
        "MODEL.ROI_MASK_HEAD.NAME": roi_heads.ROI_MASK_HEAD_REGISTRY,
        "MODEL.ROI_KEYPOINT_HEAD.NAME": roi_heads.ROI_KEYPOINT_HEAD_REGISTRY,
        "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
    }
    for key, stock in BUILDERS.items():
        for name in stock:
            assert normdet_name(name) in registries[key]


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import normdet",
        pytest.param("import detectron2.modeling, normdet", marks=pytest.mark.slow),
        pytest.param("import normdet, detectron2.engine", marks=pytest.mark.slow),
    ],
)
def test_importing_normdet_registers_in_any_order_and_is_cheap(imports):
    code = (
        f"import sys\n{imports}\n"
        "import normdet\n"
        "assert 'detectron2' in sys.modules or not {'torch', 'triton'} & set(sys.modules)\n"
        "from detectron2.modeling import BACKBONE_REGISTRY\n"
        "assert 'build_normdet_resnet_fpn_backbone' in BACKBONE_REGISTRY\n"
        "from normdet import add_normdet_config, set_norm\n"
        "assert normdet.solver.build_optimizer\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_frozen_bn_freezes_the_backbone_and_leaves_the_heads_bare(cfg):
    normdet.set_norm(cfg, "GN")
    normdet.set_norm(cfg, "FrozenBN")
    assert norms(cfg)["backbone"] == "FrozenBN"
    heads = set(USUAL_PARTS) - {"backbone", "sem_seg_head"}
    assert {norms(cfg)[part] for part in heads} == {""}


def test_chosen_parts_alone(cfg):
    before = norms(cfg)
    normdet.set_norm(cfg, "GN", ["rpn_head", "box_fc"])
    changed = {part for part, norm in norms(cfg).items() if norm != before[part]}
    assert changed == {"rpn_head", "box_fc"}
    normdet.set_norm(cfg, "GN", ["all"])
    assert {norm for part, norm in norms(cfg).items() if not NORMED[part].of} == {"GN"}
    assert {str(norm_option(cfg, part)) for part in NORMED} == {"GN"}


@pytest.mark.parametrize(
    ("text", "parts", "says"),
    [("FRN_TLU", None, "did you mean 'FRN\\+TLU'"), ("GN", ["neck"], "unknown part 'neck'")],
)
def test_bad_flags_change_nothing(cfg, text, parts, says):
    before = cfg.dump()
    with pytest.raises(NormdetError, match=says):
        normdet.set_norm(cfg, text, parts)
    assert cfg.dump() == before


def test_every_parameter_of_every_method_has_its_key(cfg):
    for method in METHODS.values():
        for name, value in method.params.items():
            assert cfg.MODEL.NORMDET[method.name][name] == value
    cfg.MODEL.NORMDET.GN.NUM_GROUPS = 8
    cfg.MODEL.RESNETS.NORM = "GN"
    assert norm_option(cfg, "backbone").build_norm(64).num_groups == 8


def test_adding_the_keys_twice_keeps_what_was_set(cfg):
    cfg.MODEL.NORMDET.GN.NUM_GROUPS = 8
    normdet.add_normdet_config(cfg)
    assert cfg.MODEL.NORMDET.GN.NUM_GROUPS == 8


def test_a_config_without_our_keys_says_what_to_call():
    with pytest.raises(NormdetError, match="add_normdet_config"):
        norm_option(get_cfg(), "backbone")


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        (["MODEL.RESNETS.NORM", "FRN_TLU"], r"MODEL\.RESNETS\.NORM: .*did you mean 'FRN\+TLU'"),
        (["MODEL.NORMDET.RPN_HEAD_NORM", "Gn"], r"MODEL\.NORMDET\.RPN_HEAD_NORM: .*'GN'"),
        (["SOLVER.ACCUMULATE_STEPS", 3], "ACCUMULATE_STEPS 3 does not divide"),
        (["SOLVER.AMP.DTYPE", "fp8"], "SOLVER.AMP.DTYPE is 'fp8'"),
        (["MODEL.NO_SUCH_KEY", 1], "NO_SUCH_KEY"),
        (["MODEL.RESNETS.NORM"], "KEY VALUE"),
    ],
)
def test_unfit_values_are_refused_by_key(opts, says):
    with pytest.raises(NormdetError, match=says):
        load_config("quickstart/gn.yaml", opts)


def test_the_flag_yields_to_the_pairs_behind_it():
    cfg = load_config("quickstart/gn.yaml", ["MODEL.FPN.NORM", "IN"], norm="FRN+TLU")
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM) == ("FRN+TLU", "IN")


def test_parts_without_a_norm_are_refused():
    with pytest.raises(NormdetError, match="give --norm too"):
        load_config("quickstart/gn.yaml", norm_parts=["fpn"])


def test_a_yaml_that_would_run_code_is_refused(tmp_path):
    ran = tmp_path / "ran"
    config = tmp_path / "evil.yaml"
    for text in (
        f'MODEL: {{WEIGHTS: !!python/object/apply:os.system ["touch {ran}"]}}',
        f'_BASE_: "base.yaml"\nOUTPUT_DIR: !!python/object/apply:os.system ["touch {ran}"]',
    ):
        (tmp_path / "base.yaml").write_text("VERSION: 2\n")
        config.write_text(text)
        with pytest.raises(NormdetError, match=r"evil\.yaml"):
            load_config(config)
        assert not ran.exists()


@pytest.mark.parametrize("text", ["MODEL: [", "- a\n- b\n", "MODEL: {NO_SUCH_KEY: 1}", "\x00"])
def test_a_broken_yaml_names_the_file(tmp_path, text):
    config = tmp_path / "broken.yaml"
    config.write_text(text)
    with pytest.raises(NormdetError, match=r"broken\.yaml"):
        load_config(config)


def test_a_root_that_begins_with_a_dot_is_beside_the_file_that_has_it(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset.yaml").write_text('DATASETS: {ROOT: "./"}\n')
    (folder / "up.yaml").write_text('_BASE_: "dataset.yaml"\nDATASETS: {ROOT: "../b"}\n')
    (folder / "plain.yaml").write_text('_BASE_: "dataset.yaml"\nDATASETS: {ROOT: ".b"}\n')
    mine = tmp_path / "mine.yaml"
    mine.write_text('_BASE_: ["data/dataset.yaml"]\n')
    monkeypatch.chdir(tmp_path)
    assert load_config("data/dataset.yaml").DATASETS.ROOT == str(folder)
    assert load_config(mine).DATASETS.ROOT == str(folder)
    assert load_config(folder / "up.yaml").DATASETS.ROOT == str(tmp_path / "b")
    # Any other is left to the working directory, and so is one that is given in the command.
    assert load_config(folder / "plain.yaml").DATASETS.ROOT == ".b"
    assert load_config(mine, ["DATASETS.ROOT", "./c"]).DATASETS.ROOT == str(tmp_path / "c")


def test_config_file_finds_and_suggests():
    path = normdet.config_file("coco/mask_rcnn_R_50_FPN_3x_gn.yaml")
    assert path.endswith("coco/mask_rcnn_R_50_FPN_3x_gn.yaml")
    with pytest.raises(NormdetError, match=r"did you mean coco/mask_rcnn_R_50_FPN_3x_gn\.yaml"):
        normdet.config_file("coco/mask_rcnn_R50_FPN_3x_gn.yaml")
    assert len(config_names()) == len(set(config_names())) > 40


def test_anchor_sizes_that_the_zoo_spells_for_eval_are_read_safely(tmp_path):
    file = tmp_path / "config.yaml"
    spelled = '!!python/object/apply:eval ["[[x, x * 2] for x in [32, 64]]"]'
    file.write_text(f"MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: {spelled}\n")
    assert load_config(file).MODEL.ANCHOR_GENERATOR.SIZES == [[32, 64], [64, 128]]
    file.write_text("MODEL:\n  WEIGHTS: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(NormdetError, match="getcwd"):
        load_config(file)
    file.write_text(file.read_text().replace("os.getcwd []", 'eval ["open(0)"]'))
    with pytest.raises(NormdetError, match="no list of numbers"):
        load_config(file)


@pytest.mark.slow
def test_a_start_without_notices_of_other_packages():
    code = """
import normdet, torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
cfg = get_cfg()
normdet.add_normdet_config(cfg)
cfg.MODEL.DEVICE = "cpu"
normdet.set_norm(cfg, "GN")
build_model(cfg).backbone(torch.rand(1, 3, 64, 64))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
