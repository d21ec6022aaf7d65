"""`normdet tool`: a script written for detectron2 works on a config with our keys."""

import subprocess
import sys

import pytest

from normdet.cli import main

# The start of the scripts in detectron2's tools/, shortened.
SCRIPT = """
import argparse
import sys
from detectron2.config import get_cfg
from detectron2.modeling import build_model

parser = argparse.ArgumentParser()
parser.add_argument("--config-file")
parser.add_argument("opts", nargs="*")
args = parser.parse_args()
cfg = get_cfg()
cfg.merge_from_file(args.config_file)
cfg.merge_from_list(args.opts)
cfg.freeze()
model = build_model(cfg.clone())
print(type(model.backbone.bottom_up.stem.conv1.norm).__name__, __name__, len(sys.argv))
sys.exit(3)
"""


@pytest.mark.slow
def test_a_script_of_detectron2_builds_our_detector(tmp_path):
    script = tmp_path / "a_tool.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "normdet", "tool", str(script), "--config-file"]
    command += ["coco/mask_rcnn_R_50_FPN_1x.yaml", "MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH"]
    command += ["18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "FRN+TLU"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == ["FilterResponseNorm2d", "__main__", "11"], done.stderr
    assert done.returncode == 3


def test_a_script_that_is_not_there(tmp_path, capsys):
    assert main(["tool", str(tmp_path / "none.py")]) == 2
    assert "is no file: name a script" in capsys.readouterr().err
