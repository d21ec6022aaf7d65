"""`normdet train` from end to end, in this process and started as a user starts it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from normdet.cli import main

REPO = Path(__file__).resolve().parents[2]
FAST = ("SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1")


@pytest.fixture
def command(tiny_config, tmp_path):
    """The arguments of a run in `tmp_path / "run"`, with more of them at the end."""

    def make(*more):
        return ["--config-file", str(tiny_config), *more, "OUTPUT_DIR", f"{tmp_path}/run"]

    return make


@pytest.fixture
def start(command):
    """Starts a run as a program of its own."""

    def run(*more, program=("-m", "normdet", "train"), **kwargs):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        return subprocess.Popen(
            [sys.executable, *program, *command(*more)],
            cwd=REPO, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs,
        )  # fmt: skip

    return run


def train(argv):
    return main(["train", *argv])


@pytest.mark.slow
def test_a_run_says_what_it_is_and_leaves_its_results(command, capsys, tmp_path):
    assert train(command("--norm", "FRN+TLU", *FAST)) == 0
    out, folder = capsys.readouterr().out, tmp_path / "run"
    assert re.search(r"backbone res2 +FRN\+TLU +trained +[\d,]+ +start values", out)
    assert re.search(r"coco:squares.json:images +segm +[\d.]+", out)
    assert set(json.loads((folder / "results.json").read_text())) == {"bbox", "segm"}
    rows = json.loads((folder / "norms.json").read_text())
    assert rows[0]["part"] == "backbone stem" and rows[0]["norm"] == "FRN+TLU"
    assert yaml.safe_load((folder / "config.yaml").read_text())["SEED"] == 1
    assert "MODEL.RESNETS.NORM FRN+TLU" in (folder / "config_diff.txt").read_text()
    assert "DetectionCheckpointer" in (folder / "log.txt").read_text()

    # The folder is taken; only the same model goes on in it, and evaluation needs its weights.
    assert train(command(*FAST)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert train(command("--resume", *FAST)) == 2
    assert "MODEL.RESNETS.NORM was 'FRN+TLU' and is 'GN'" in capsys.readouterr().err
    assert train(command("--norm", "FRN+TLU", "--eval-only", *FAST)) == 2
    assert "MODEL.WEIGHTS" in capsys.readouterr().err

    # The sources of the weights are saved too.
    assert not (folder / "weights.json").exists()
    assert train(command("--norm", "FRN+TLU", "--resume", *FAST)) == 0
    kept = json.loads((folder / "weights.json").read_text())
    assert kept["source"].endswith("model_final.pth") and kept["matched"] and not kept["missing"]

    before = json.loads((folder / "results.json").read_text())
    assert train(command("--norm", "FRN+TLU", "--eval-only", "--resume", *FAST)) == 0
    assert json.loads((folder / "results.json").read_text()) == before


def test_a_refused_start_does_not_take_the_folder(command, capsys):
    for _ in range(2):
        assert train(command("DATASETS.TRAIN", "('coco:none.json:images',)")) == 2
        assert "none.json does not exist" in capsys.readouterr().err


def test_a_dry_run_trains_and_writes_nothing(command, capsys, tmp_path):
    assert train(command("--dry-run", "--norm", "GN+WS")) == 0
    out = capsys.readouterr().out
    assert "MODEL.RESNETS.NORM GN+WS" in out
    assert re.search(r"box head +none +trained", out)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_by_num_gpus_save_on_ctrl_c_and_resume(start, tmp_path):
    running = start("--num-gpus", "2", "SOLVER.MAX_ITER", "500", start_new_session=True)
    log = tmp_path / "run" / "log.txt"
    deadline = time.monotonic() + 120
    while "training from iteration" not in (log.read_text() if log.exists() else ""):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.2)
    time.sleep(2)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    done = int(re.search(r"stopped by SIGINT after (\d+) of 500", err).group(1))
    assert "Traceback" not in err

    resumed = start("--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", str(done + 1))
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert f"training from iteration {done} to {done + 1}" in out
    assert "segm" in out.split("results:")[1]
    assert "Warning" not in out + err


@pytest.mark.slow
def test_torchrun_gives_rank_and_world(start, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    running = start(*FAST, "DATASETS.TEST", "()", program=(*torchrun, "tools/train_net.py"))
    _, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert (tmp_path / "run" / "log.txt.rank1").exists()
    assert (tmp_path / "run" / "model_final.pth").exists()


def test_names_of_images_become_numbers(tiny_config, tiny_data, tmp_path, capfd):
    """In all output and in the logs, also if something fails."""
    data, out = tmp_path / ("scans " * 16 + "of") / "Ä. Zaphod", tmp_path / "run"
    shutil.copytree(tiny_data, data)
    (data / "images" / "1.png").rename(data / "images" / "Zaphod 1.png")
    text = (data / "squares.json").read_text().replace('"1.png"', '"Zaphod 1.png"')
    (data / "squares.json").write_text(text)
    (data / "images" / "Zaphod 1.png").write_bytes(b"broken")
    command = ["train", "--config-file", str(data / "tiny.yaml"), "--anonymize"]
    command += ["OUTPUT_DIR", str(out), "DATASETS.ROOT", str(data)]
    assert main(command) == 2
    printed = "".join(capfd.readouterr())
    assert re.search(r"1 faults:\s+file \d+ cannot be read as an image", printed)
    assert "Zaphod" not in printed and "Zaphod" in (tmp_path / "run-names.csv").read_text()
    for path in out.glob("*log*"):
        assert not re.search(r"Zaphod|\\xC4|Ä", path.read_text()), path
