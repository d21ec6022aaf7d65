"""The command: make a run's config, train, and write the file for detectors."""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from normdet.arguments import add_common, add_job
from normdet.config import load_config
from normdet.engine import train
from normdet.errors import NormdetError
from normdet.keys import norm_option
from normdet.weights import load_file, save_file
from normdet.weights.card import Card, Measurement, write_card
from normdet.weights.facts import describe

from .images import LabelledFolder, find_labelled
from .trainer import PretrainTrainer

_PREFIX = "backbone.bottom_up."


def main(argv: Sequence[str] | None = None) -> int:
    """Train the backbone that the arguments describe, and write it for detectors.

    Raises:
        NormdetError: bad input, as for training.
    """
    argv = list(argv or ())
    args = _parse(argv)
    images = find_labelled(args.data)
    args.opts = [*_options(args, images), *args.opts]
    cfg = load_config(args.config_file, args.opts, args.norm, args.norm_parts)
    _check(cfg)
    if args.epochs:
        once = once_an_epoch(cfg, len(images.train))
        args.opts = [*once, *args.opts, *stretched(cfg, args.epochs, len(images.train))]
    train(args, PretrainTrainer)
    if os.environ.get("RANK", "0") == "0":
        _publish(Path(args.out), images.classes, argv)
    return 0


def _options(args: argparse.Namespace, images: LabelledFolder) -> list:
    """The config keys that the arguments set."""
    options = [
        "PRETRAIN.DATA", str(Path(args.data).absolute()),
        "PRETRAIN.NUM_CLASSES", len(images.classes), "OUTPUT_DIR", str(args.out),
    ]  # fmt: skip
    if args.depth:
        narrow = args.depth in (18, 34)
        options += ["MODEL.RESNETS.DEPTH", args.depth,
                    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if narrow else 256]  # fmt: skip
    return options + (["MODEL.WEIGHTS", args.weights] if args.weights else [])


def _check(cfg: CfgNode) -> None:
    """Refuse a config that is not a classifier's, or a backbone without start weights it needs."""
    if cfg.MODEL.META_ARCHITECTURE != "NormdetClassifier":
        raise NormdetError(
            f"the config is of {cfg.MODEL.META_ARCHITECTURE}: pretrain takes one of "
            "MODEL.META_ARCHITECTURE NormdetClassifier, such as pretrain/base.yaml"
        )
    option = norm_option(cfg, "backbone")
    if option.needs_statistics and not cfg.MODEL.WEIGHTS:
        raise NormdetError(
            f"--norm {option} normalizes by the statistics of pretrained weights: give --weights, "
            "or train another norm"
        )


def stretched(cfg: CfgNode, epochs: float, images: int) -> list:
    """The config's schedule, stretched or shortened to this many passes over the images."""
    steps = max(1, round(epochs * images / cfg.SOLVER.IMS_PER_BATCH))
    share = steps / cfg.SOLVER.MAX_ITER
    return [
        "SOLVER.MAX_ITER", steps,
        "SOLVER.STEPS", str(tuple(sorted({round(s * share) for s in cfg.SOLVER.STEPS}))),
        "SOLVER.WARMUP_ITERS", round(cfg.SOLVER.WARMUP_ITERS * share),
        "SOLVER.REFERENCE_WORLD_SIZE", cfg.SOLVER.REFERENCE_WORLD_SIZE,
    ]  # fmt: skip


def once_an_epoch(cfg: CfgNode, images: int) -> list:
    """Keys by which each pass over the images ends with a checkpoint and a validation."""
    period = max(1, round(images / cfg.SOLVER.IMS_PER_BATCH))
    return ["SOLVER.CHECKPOINT_PERIOD", period, "TEST.EVAL_PERIOD", period]


def _publish(out: Path, classes: list[str], argv: list[str]) -> None:
    """Write the backbone and its classifier under detectron2's names, and the model card."""
    final = out / "model_final.pth"
    if not final.is_file():
        return  # a dry start, or a stopped run
    cfg = load_config(out / "config.yaml")
    option = norm_option(cfg, "backbone")
    trained = load_file(final)["model"]
    said = describe(cfg)
    said["norms"] = {
        key: norm for key, norm in said["norms"].items()
        if key == "MODEL.RESNETS.NORM" or key.startswith("MODEL.NORMDET.")
    }  # fmt: skip
    file = out / f"R{cfg.MODEL.RESNETS.DEPTH}-{str(option).replace('+', '-')}.pth"
    # Write names without a prefix, which fit under an FPN and in a C4 detector's heads.
    tensors = {name.removeprefix(_PREFIX): value for name, value in trained.items()}
    for name in ("weight", "bias"):  # detectron2's name for it
        tensors[f"linear.{name}"] = tensors.pop(f"classifier.{name}")
    save_file({"model": tensors, "matching_heuristics": True, "normdet": said}, file)
    card = write_card(file, cfg, _card(cfg, out, file, classes, argv))
    print(f"{file}: for MODEL.WEIGHTS of a detector\n{card}")


def _card(cfg: CfgNode, out: Path, file: Path, classes: list[str], argv: list[str]) -> Card:
    results = json.loads((out / "results.json").read_text())["classification"]
    resnet = cfg.MODEL.RESNETS
    keys = [
        "MODEL.WEIGHTS", file.name, "MODEL.RESNETS.DEPTH", resnet.DEPTH,
        "MODEL.RESNETS.RES2_OUT_CHANNELS", resnet.RES2_OUT_CHANNELS,
        "MODEL.RESNETS.STRIDE_IN_1X1", resnet.STRIDE_IN_1X1, "INPUT.FORMAT", cfg.INPUT.FORMAT,
        "MODEL.PIXEL_MEAN", list(cfg.MODEL.PIXEL_MEAN),
        "MODEL.PIXEL_STD", list(cfg.MODEL.PIXEL_STD),
    ]  # fmt: skip
    option = norm_option(cfg, "backbone")
    return Card(
        summary=f"A ResNet-{cfg.MODEL.RESNETS.DEPTH} under {option}, trained on labelled images.",
        source=out / "model_final.pth",
        # Folders can name patients.
        command=shlex.join(["normdet", "pretrain", *(Path(word).name or word for word in argv)]),
        facts={
            "classes": f"{len(classes)}: {', '.join(classes[:20])}",
            "images a step": str(cfg.SOLVER.IMS_PER_BATCH),
            "steps": str(cfg.SOLVER.MAX_ITER),
            "size": f"{cfg.PRETRAIN.SIZE} pixels",
        },
        measured=[
            Measurement("Accuracy in percent on the centres of images not trained on", [results])
        ],
        limits=["A detector must see pixels as these weights did: the keys below."],
        use=[
            f"normdet train --config-file coco/mask_rcnn_R_50_FPN_1x.yaml --norm {option} "
            + shlex.join(map(str, keys))
        ],
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="normdet pretrain",
        description="Train a detector's backbone on labelled images, under any norm.",
    )
    add = parser.add_argument
    add("--data", required=True, metavar="FOLDER",
        help="a folder for each class, or train/ and val/ of these")  # fmt: skip
    add("--out", required=True, type=Path, metavar="FOLDER",
        help="where checkpoints, log, and the finished file go")  # fmt: skip
    add_common(parser, "--config-file", default="pretrain/base.yaml",
               help="the recipe (pretrain/base.yaml)")  # fmt: skip
    add_common(parser, "--norm", help="the backbone's norm: GN, GN+WS, FRN+TLU, ...")
    add("--depth", type=int, choices=(18, 34, 50, 101, 152), help="the ResNet's (the recipe's)")
    add("--weights", metavar="FILE", help="weights to start from, such as convert's")
    add("--epochs", type=float, metavar="N", help="stretch the recipe to N passes over the images")
    add_job(parser)
    args = parser.parse_intermixed_args(argv)
    if args.epochs is not None and args.epochs <= 0:
        raise NormdetError(f"--epochs {args.epochs:g}: it must be above 0")
    args.norm_parts = ["backbone"] if args.norm else None
    args.eval_only = args.dry_run = args.anonymize = False
    return args
