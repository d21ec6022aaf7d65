"""The trainer tells norms of each step and logs what they have to tell."""

import json

import pytest

from normdet.cli import main
from normdet.weights import load_file


@pytest.mark.slow
def test_schedules_count_steps_survive_resume_and_shares_are_logged(tiny_config, tmp_path):
    brn = ["MODEL.NORMDET.BRN.WARMUP", "1", "MODEL.NORMDET.BRN.OPEN", "2", "DATASETS.TEST", "()"]
    config = ["--config-file", str(tiny_config), "--norm", "BRN"]
    run = [*config, "OUTPUT_DIR", f"{tmp_path}/brn", *brn]
    assert main(["train", *run, "SOLVER.MAX_ITER", "2"]) == 0
    assert main(["train", "--resume", *run, "SOLVER.MAX_ITER", "3"]) == 0
    state = load_file(tmp_path / "brn" / "model_final.pth")["model"]
    steps = [int(value) for key, value in state.items() if key.endswith("norm.steps")]
    assert steps and set(steps) == {3}

    run = ["--config-file", str(tiny_config), "OUTPUT_DIR", f"{tmp_path}/switch"]
    opts = ["SOLVER.MAX_ITER", "20", "DATASETS.TEST", "()", "MODEL.RESNETS.NORM", "SwitchNorm"]
    opts += ["MODEL.NORMDET.STATISTICS_PERIOD", "10"]
    assert main(["train", *run, *opts]) == 0
    line = json.loads((tmp_path / "switch" / "metrics.json").read_text().splitlines()[-1])
    shares = {key: value for key, value in line.items() if "res2.0.conv1.norm/" in key}
    assert {key.rpartition("/")[2] for key in shares} == {
        "mean_in", "mean_ln", "mean_bn", "var_in", "var_ln", "var_bn",
    }  # fmt: skip
    assert sum(shares.values()) == pytest.approx(2, abs=1e-4)
