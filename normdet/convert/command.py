"""The command: arguments, images, and what is printed and written."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor

from normdet.arguments import add_common, check_counts, names
from normdet.config import load_config
from normdet.data import register_datasets
from normdet.data.images import Images, find_images, named_images, sample
from normdet.data.input_record import read_record
from normdet.engine import Trainer
from normdet.engine.run import use_device_at_hand
from normdet.engine.summary import by_dataset, jsonable
from normdet.errors import NormdetError
from normdet.files.atomic import atomic_file
from normdet.options import parse
from normdet.weights.card import Card, Measurement, write_card

from .distill import Schedule
from .eval_norm import to_fitted_eval_norm
from .run import RUNGS, Conversion, Settings, convert


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the checkpoint that the arguments name, and say what was kept.

    Raises:
        NormdetError: what cannot be converted, read or written.
    """
    args = parse_arguments(argv)
    option = parse(args.to)
    opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    cfg = load_config(args.config_file, opts, args.norm, args.norm_parts)
    use_device_at_hand(cfg)
    if args.out.suffix not in (".pth", ".pt", ".safetensors"):
        raise NormdetError(f"--out {args.out}: weights are written as .pth or .safetensors")
    if option.norm == "EvalNorm" and args.rung in (None, "calibrated"):
        _eval_norm(cfg, args)
        return 0
    files = named_images(args.images, args.dataset, cfg.DATASETS.ROOT)
    args.rung = args.rung or ("calibrated" if files else "closed")
    settings = Settings(
        str(option), args.rung, args.keep, args.parts, args.size,
        args.crop, args.batch_size, args.seed, Schedule(args.steps, args.rate, args.all_weights),
    )  # fmt: skip
    window = "none" if args.dataset else read_record(cfg, Path(args.weights).parent).window
    images = _read(sample(files, args.max_images), cfg, window)
    check = _read(find_images(args.check_images), cfg, window) if args.check_images else None
    done = convert(
        cfg, settings, images, check=check, allow_unsafe=args.allow_unsafe_weights,
        state_file=args.out.with_name(f".{args.out.stem}.distilling.pth"),
    )  # fmt: skip
    if args.evaluate:
        _evaluate(cfg, done)
    done.save(args.out)
    _write(done, args)
    _print(done, args)
    return 0


def _read(files: Sequence[Path], cfg: CfgNode, window: str) -> list[Tensor]:
    """Images resized as in a test; what cannot be read is named and left out."""
    reader = Images(files, cfg, 1, window)
    images = [batch[0]["image"] for batch in reader] if files else []
    for fault in reader.faults:
        print(f"left out: {fault}")
    return images


def _eval_norm(cfg: CfgNode, args: argparse.Namespace) -> None:
    rows = to_fitted_eval_norm(cfg, args.out, args.batches, args.allow_unsafe_weights)
    table = [(row.layer, row.blend, row.error_of_bn, row.error) for row in rows]
    headers = ("layer", "blend", "distance under BN", "distance")
    print(tabulate(table, headers, floatfmt=".3f", missingval="-"))
    print(f"{args.out}: read it with the same config and --norm EvalNorm")


def _evaluate(cfg: CfgNode, done: Conversion) -> None:
    """AP of both networks on `DATASETS.TEST`."""
    register_datasets(cfg)
    if not cfg.DATASETS.TEST:
        raise NormdetError("--evaluate: DATASETS.TEST names no images with annotations")
    for name, model in (("original", done.original), ("converted", done.converted)):
        sets = by_dataset(Trainer.test(cfg, model), cfg.DATASETS.TEST)
        done.achieved[f"AP {name}"] = {
            f"{task} AP" + (f" of {dataset}" if len(sets) > 1 else ""): jsonable(found["AP"])
            for dataset, tasks in sets.items()
            for task, found in tasks.items()
        }


def _write(done: Conversion, args: argparse.Namespace) -> None:
    """Write the config, the achieved errors and the model's card beside the weights."""
    cfg = done.cfg.clone()
    cfg.MODEL.WEIGHTS = str(args.out)
    record = {
        "from": args.weights, "to": args.to, "keep": args.keep,
        "rung": [rung for rung in RUNGS if rung in done.achieved],
        "achieved": done.achieved, "losses": done.losses, "torch": torch.__version__,
        "warnings": done.report.warnings,
    }  # fmt: skip
    for suffix, text in ((".yaml", cfg.dump()), (".json", json.dumps(record, indent=1) + "\n")):
        with atomic_file(args.out.with_suffix(suffix)) as file:
            file.write(text.encode())
    write_card(args.out, cfg, _card(done, args))


def _card(done: Conversion, args: argparse.Namespace) -> Card:
    features = [
        {"rung": name, **found} for name, found in done.achieved.items() if name in RUNGS
    ]
    precision = [
        {"model": name.removeprefix("AP "), **found}
        for name, found in done.achieved.items() if name not in RUNGS
    ]  # fmt: skip
    name = Path(args.weights).name
    return Card(
        summary=f"Weights under {args.to}, converted without labels from {name}.",
        source=args.weights,
        facts={
            "rung": args.rung,
            "kept of what the norm divides by": f"{args.keep:g}",
            "tensors": f"{len(done.loaded)}",
        },
        measured=[
            Measurement("Distance to the original on images that were not fitted", features),
            Measurement("AP on DATASETS.TEST", precision),
        ],
        limits=done.report.warnings,
        use=_next(args),
    )


def _next(args: argparse.Namespace) -> list[str]:
    """The command that trains what was converted."""
    config = args.out.with_suffix(".yaml")
    later = " MODEL.NORMDET.ANNEAL_UNTIL 0.5" if args.rung == "annealed" else ""
    return [f"normdet train --config-file {config} OUTPUT_DIR output/{args.out.stem}{later}"]


def _print(done: Conversion, args: argparse.Namespace) -> None:
    names = dict.fromkeys(name for found in done.achieved.values() for name in found)
    rows = [[name, *(found.get(name) for found in done.achieved.values())] for name in names]
    if rows:
        headers = ["on images that were not fitted", *done.achieved]
        print(tabulate(rows, headers, floatfmt=".3f", missingval=""))
    for warning in done.report.warnings:
        print(f"warning: {warning}")
    print(f"\n{args.out}: {len(done.loaded)} tensors under {args.to}\nnext:")
    for line in _next(args):
        print(f"  {line}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command's words."""
    parser = argparse.ArgumentParser(
        prog="normdet convert",
        description="Give a trained model another norm and keep its function.",
    )
    add = parser.add_argument
    add("weights", help="the trained model's checkpoint, or an ImageNet backbone's")
    add("--to", required=True, metavar="OPTION", help="the norm it gets: GN, FRN+TLU, ...")
    add_common(parser, "--config-file", required=True, help="the config it was trained with")
    add_common(parser, "--norm")
    add_common(parser, "--norm-parts")
    add("--out", required=True, type=Path, metavar="FILE", help="the file to write")
    add(
        "--images", action="append", metavar="PATH",
        help="unlabelled images or a folder of them, 16 to 64 do; may be repeated",
    )  # fmt: skip
    add("--dataset", metavar="NAME", help="instead of --images; as in DATASETS.TRAIN")
    add(
        "--check-images", action="append", metavar="PATH",
        help="images to measure on; by default every fourth of those given",
    )  # fmt: skip
    add(
        "--rung", choices=RUNGS,
        help="closed: from stored statistics; calibrated (with images, the default): and from "
        "images; distilled: and some hundred steps on them; annealed: exactly the original, whose "
        "statistics training replaces step by step",
    )  # fmt: skip
    add(
        "--keep", type=float, default=0.0, metavar="SHARE",
        help="of what GN, LN, IN or FRN divides by, keep this share fixed through a learned "
        "epsilon (0.9: nearly the original's function)",
    )  # fmt: skip
    add(
        "--parts", type=names, metavar="A,B",
        help="parts that get the norm; by default those that have one",
    )  # fmt: skip
    add("--steps", type=int, default=300, metavar="N", help="steps of distillation (300)")
    add(
        "--rate", type=float, default=1e-4, metavar="R",
        help="learning rate of distillation (1e-4)",
    )  # fmt: skip
    add("--all-weights", action="store_true", help="distill every weight, not the norms' alone")
    add(
        "--size", type=int, default=224, metavar="N",
        help="images are seen as squares of N pixels (224)",
    )  # fmt: skip
    add("--crop", type=int, default=0, metavar="N", help="pixels of distillation's crops (--size)")
    add(
        "--batch-size", type=int, default=8, metavar="N",
        help="crops in a step of distillation (8)",
    )  # fmt: skip
    add("--max-images", type=int, default=64, metavar="N", help="use N images, evenly spaced (64)")
    add("--seed", type=int, default=0, metavar="N", help="seed of distillation's crops (0)")
    add("--evaluate", action="store_true", help="AP before and after, on DATASETS.TEST")
    add(
        "--batches", type=int, default=50, metavar="N",
        help="batches that EvalNorm learns from (50)",
    )  # fmt: skip
    add_common(parser, "--allow-unsafe-weights")
    add_common(parser, "opts")
    args = parser.parse_intermixed_args(argv)
    check_counts(args, "batches", "steps", "batch_size", "max_images", "size")
    return args
