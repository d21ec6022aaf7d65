"""`normdet convert`: give a trained model another norm, its weights kept."""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from normdet.config import PARTS, get, load_config, put
from normdet.data import register_datasets
from normdet.engine import Trainer
from normdet.engine.loader import build_train_loader
from normdet.engine.run import use_device_at_hand
from normdet.errors import NormdetError
from normdet.eval_norm import fit_eval_norm
from normdet.layers import to_eval_norm
from normdet.options import parse
from normdet.weights import Checkpointer, save_file
from normdet.weights.checks import describe

# Options whose state an EvalNorm takes over as it is.
_BATCH_NORMS = ("BN", "SyncBN")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the checkpoint that the arguments name, and print what was learned of each layer.

    Raises:
        NormdetError: a model without batch norm, or files that cannot be read or written.
    """
    args = _parse(argv)
    cfg = load_config(args.config_file, ["MODEL.WEIGHTS", args.weights, *args.opts], args.norm)
    use_device_at_hand(cfg)
    rows = to_fitted_eval_norm(cfg, args.out, args.batches, args.allow_unsafe_weights)
    table = [(row.layer, row.blend, row.error_of_bn, row.error) for row in rows]
    headers = ("layer", "blend", "distance under BN", "distance")
    print(tabulate(table, headers, floatfmt=".3f", missingval="-"))
    print(f"{args.out}: read it with the same config and --norm EvalNorm")
    return 0


def to_fitted_eval_norm(
    cfg: CfgNode, out: str | Path, batches: int = 50, allow_unsafe: bool = False
) -> list:
    """Turn the BN of a trained model into EvalNorm, learn its blend, and save the result.

    No weight changes; the images are those of `DATASETS.TRAIN`, their labels are not used, in
    batches of `SOLVER.IMS_PER_BATCH` as in training.

    Args:
        cfg: of the model as it was trained, `MODEL.WEIGHTS` its checkpoint.
        out: where the converted checkpoint goes.
        batches: how many to learn from.

    Returns:
        A :class:`normdet.eval_norm.BlendRow` per layer.

    Raises:
        NormdetError: as :func:`main`.
    """
    register_datasets(cfg)
    model = Trainer.build_model(cfg)
    Checkpointer(model, cfg=cfg, allow_unsafe=allow_unsafe).load(cfg.MODEL.WEIGHTS)
    model = to_eval_norm(model)
    rows = fit_eval_norm(model, _unlabelled(cfg, batches))
    converted = cfg.clone()
    for key in PARTS.values():
        norm, *modifiers = str(get(cfg, key)).split("+")
        if norm in _BATCH_NORMS:
            put(converted, key, str(parse("+".join(["EvalNorm", *modifiers]))))
    save_file({"model": model.state_dict(), "normdet": describe(converted)}, out)
    return rows


def _unlabelled(cfg: CfgNode, batches: int) -> Iterator[list[dict]]:
    for batch in itertools.islice(build_train_loader(cfg, max(cfg.SEED, 0)), batches):
        yield [{"image": example["image"]} for example in batch]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="normdet convert", description=__doc__)
    add = parser.add_argument
    add("weights", help="the trained model's checkpoint")
    add("--to", required=True, choices=["EvalNorm"], help="the norm it gets")
    add("--config-file", required=True, metavar="FILE", help="the config it was trained with")
    add("--norm", metavar="OPTION", help="the --norm it was trained with, if it was given one")
    add("--out", required=True, type=Path, metavar="FILE", help="where the result goes")
    add("--batches", type=int, default=50, metavar="N", help="batches of images to learn from")
    add("--allow-unsafe-weights", action="store_true", help="load a file that can run code")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and their values")
    args = parser.parse_intermixed_args(argv)
    if args.batches < 1:
        raise NormdetError(f"--batches {args.batches}: at least one is needed")
    return args
