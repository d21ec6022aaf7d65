"""Configs: read by name, merged with the flag, and refused by key or by file."""

import pytest
from detectron2.config import get_cfg

import normdet
from normdet.config import config_names, load_config
from normdet.errors import NormdetError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    return cfg


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
