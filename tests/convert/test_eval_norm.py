"""`normdet convert --to EvalNorm`: no weight changes, and the result is read by the same config."""

import pytest
import torch

from normdet.cli import main
from normdet.weights import load_file

TINY = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"]


@pytest.mark.slow
def test_a_trained_batch_norm_becomes_an_eval_norm(quickstart_data, tmp_path, capsys):
    base = ["--config-file", "quickstart/base.yaml"]
    run = ["OUTPUT_DIR", f"{tmp_path}/bn", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", *TINY]
    assert main(["train", *base, "--norm", "BN", *run, "DATASETS.TEST", "()"]) == 0
    weights, out = f"{tmp_path}/bn/model_final.pth", f"{tmp_path}/fitted.pth"
    arguments = [weights, "--to", "EvalNorm", *base, "--norm", "BN", "--out", out]
    assert main(["convert", *arguments, "--batches", "2", *TINY]) == 0
    assert "res2.0.conv1.norm" in capsys.readouterr().out

    before, after = load_file(weights)["model"], load_file(out)
    state = after["model"]
    assert {key for key in state if not key.endswith("blend")} == before.keys()
    assert all(torch.equal(value, state[key]) for key, value in before.items())
    blends = [value for key, value in state.items() if key.endswith("blend")]
    assert blends and all(0 <= value <= 1 for value in blends) and any(v > 0 for v in blends)
    assert after["normdet"]["norms"]["MODEL.RESNETS.NORM"] == "EvalNorm"

    read = ["MODEL.WEIGHTS", out, "OUTPUT_DIR", f"{tmp_path}/eval", *TINY]
    assert main(["eval", *base, "--norm", "EvalNorm", *read]) == 0


def test_a_model_without_batch_norm_is_refused(quickstart_data, tmp_path, capsys):
    from detectron2.modeling import build_model

    from normdet.config import load_config
    from normdet.weights import save_file

    cfg = load_config("quickstart/gn.yaml", ["MODEL.DEVICE", "cpu"])
    save_file({"model": build_model(cfg).state_dict()}, tmp_path / "gn.pth")
    arguments = [f"{tmp_path}/gn.pth", "--to", "EvalNorm", "--out", f"{tmp_path}/out.pth"]
    assert main(["convert", *arguments, "--config-file", "quickstart/gn.yaml"]) == 2
    assert "no EvalNorm to fit" in capsys.readouterr().err
    assert not (tmp_path / "out.pth").exists()
