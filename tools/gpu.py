#!/usr/bin/env python
"""Run what needs a GPU, each stage within its time: `make gpu`, ten minutes in all.

    smoke     a kernel of each kind agrees with plain torch
    ops       the layers beside their peers, in bf16
    step      whole training steps of Mask R-CNN, also channels last and with fixed norms folded
    tests     the GPU tests but the slow ones
    compare   frozen against learnable norms on nuclei, R50-FPN with stock heads, seed by seed

A stage that fails or runs out of time stops no other. Results and a log of each stage go to
`--output`. `compare` needs `--data`, a folder with nuclei/ (train.json, val.json, images/) and
weights/resnet50-imagenet.pth, and is left out without it. `--cpu` tries the stages on a machine
without a GPU, on small sizes. Nothing here needs a network.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NORMDET = (sys.executable, "-m", "normdet")
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
LIMITS = {"smoke": 40, "ops": 100, "step": 100, "tests": 240, "compare": 120}  # seconds
# How a stage ends. What it measured before its time was over is kept.
OK, LATE, FAILED = "ok", "out of time", "failed"
CONFIG = ("--config-file", "compare/nuclei_pretrained.yaml")
# detectron2's own sizes, where the config has those that two CPU cores can afford.
STOCK = (
    "MODEL.FPN.OUT_CHANNELS 256 MODEL.RPN.BATCH_SIZE_PER_IMAGE 256 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 512 MODEL.ROI_BOX_HEAD.CONV_DIM 256 "
    "MODEL.ROI_BOX_HEAD.FC_DIM 1024 MODEL.ROI_MASK_HEAD.CONV_DIM 256 "
    "MODEL.ROI_MASK_HEAD.NUM_CONV 4 SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE bfloat16"
).split()
TINY = (
    "MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 50 SOLVER.MAX_ITER 1 INPUT.MIN_SIZE_TRAIN (64,) "
    "INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 64 MODEL.NORMDET.START.IMAGES 1"
).split()
START = (
    "MODEL.NORMDET.START.KEEP 0.99 MODEL.NORMDET.START.PARTS \"('fpn', 'mask_head', 'box_head')\""
)


def main() -> int:
    args = _arguments()
    Path(args.output).mkdir(parents=True, exist_ok=True)
    share = args.minutes * 60 / sum(LIMITS.values())
    ends = [_stage(name, LIMITS[name] * share, args) for name in args.stages]
    return 1 if FAILED in ends else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"of {', '.join(LIMITS)} (all, in this order)"
    )
    parser.add_argument("--minutes", type=float, default=10, help="for all stages together (10)")
    parser.add_argument("--output", default="results", metavar="DIR", help="(results)")
    parser.add_argument("--data", metavar="DIR", help="for compare")
    parser.add_argument("--cpu", action="store_true", help="try the stages without a GPU")
    args = parser.parse_args()
    unknown = set(args.stages) - set(LIMITS)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}: choose from {', '.join(LIMITS)}")
    args.stages = args.stages or list(LIMITS)
    return args


def _stage(name: str, limit: float, args: argparse.Namespace) -> str:
    """Run a stage's commands in turn until its time is over; print and return how it ended."""
    started = time.monotonic()
    log = Path(args.output, f"gpu-{name}.log")
    print(f"== {name}: at most {limit:.0f} s", flush=True)
    if name == "compare" and not args.data:
        print("left out: it needs --data", flush=True)
        return OK
    with log.open("w") as file:
        for command in _commands(name, args):
            end = _run(command, started + limit - time.monotonic(), file)
            if end != OK:
                break
    tail = log.read_text(errors="replace").splitlines()[-8:]
    print(*tail, f"== {name}: {end}, {time.monotonic() - started:.0f} s", sep="\n", flush=True)
    return end


def _run(command: Sequence[str], seconds: float, log) -> str:
    """Run a command and return how it ended. One that is stopped gets time to save what it has."""
    if seconds <= 0:
        return LATE
    print("$", *command, file=log, flush=True)
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        return FAILED if process.wait(seconds) else OK
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print("stopped: out of time", file=log, flush=True)
        return LATE


def _commands(name: str, args: argparse.Namespace) -> list[Sequence[str]]:
    to = ("--output", args.output)
    if name == "smoke":
        test = "tests/ops/test_backends.py" if args.cpu else "tests/ops/test_triton.py"
        chosen = "residual and eager" if args.cpu else "joined or current_one"
        return [(*PYTEST, test, "-k", chosen)]
    if name == "ops":
        if args.cpu:
            few = ("--shapes", "2x64x8x8", "--seconds", "0.01", "--no-compile")
            return [(*NORMDET, "bench", *few, *to)]
        return [(*NORMDET, "bench", "--gpu", "--dtype", "bf16", "--seconds", "0.1", *to)]
    if name == "step":
        ways = ("--recompute", "--folded", "--channels-last")
        if args.cpu:
            few = ("--size", "64", "--seconds", "0.01", "--norms", "GN")
            return [(*NORMDET, "bench", "--step", *few, *to)]
        return [(*NORMDET, "bench", "--gpu", "--step", "--seconds", "2", *ways, *to)]
    if name == "tests":
        fit = "not slow" if args.cpu else "gpu and not slow"
        return [(*PYTEST, *(["tests/ops/test_triton.py"] if args.cpu else ["tests"]), "-m", fit)]
    return _comparison(args)


def _comparison(args: argparse.Namespace) -> list[Sequence[str]]:
    """Convert the weights once, then all arms for one seed after the other."""
    folder = Path(args.output, "compare-gpu")
    folder.mkdir(parents=True, exist_ok=True)
    weights = f"{args.data}/weights/resnet50-imagenet.pth"
    keys = ("DATASETS.ROOT", f"{args.data}/nuclei", "MODEL.WEIGHTS", weights)
    keys += (*STOCK, *TINY) if args.cpu else tuple(STOCK)
    commands, arms = [], []
    for norm, name in (("GN", "GN"), ("FRN+TLU", "FRN")):
        start = str(folder / f"{name}.pth")
        commands.append(
            (*NORMDET, "convert", weights, *CONFIG, "--norm", "FrozenBN", "--to", norm,
             "--keep", "0.9", "--size", "192", "--dataset", "coco:train.json:images",
             *(("--max-images", "4") if args.cpu else ()), "--out", start, *keys)
        )  # fmt: skip
        own = f"{norm}={norm} MODEL.NORMDET.{name}.LEARNED_EPS always {START}"
        arms += ["--variant", own, "--init", f"{norm}={start}"]
    for key, text in (
        ("as is", "MODEL.BACKBONE.FREEZE_AT 2"),
        ("2fc", "MODEL.ROI_BOX_HEAD.NUM_CONV 0 MODEL.ROI_BOX_HEAD.NUM_FC 2"),
    ):
        arms += ["--variant", f"FrozenBN {key}=FrozenBN {text}"]
    for seed in (5,) if args.cpu else range(5, 10):
        commands.append(
            (*NORMDET, "compare", *CONFIG, "--norms", "FrozenBN", *arms, "--batch-sizes", "2",
             "--seeds", f"5-{seed}", "--baseline", "FrozenBN",
             *(("--jobs", "1") if args.cpu else ("--gpu-share", "0.5")),
             "--out", str(folder), *keys)
        )  # fmt: skip
    return commands


if __name__ == "__main__":
    sys.exit(main())
