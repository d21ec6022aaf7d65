"""From BN to EvalNorm: the weights stay, and the blend is learned from images."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode

from normdet.convert.blend import BlendRow, fit_eval_norm
from normdet.data import register_datasets
from normdet.engine.loader import build_train_loader
from normdet.keys import get, put
from normdet.layers import to_eval_norm
from normdet.options import read_stated
from normdet.parts import NORMED
from normdet.weights import load_model, save_file
from normdet.weights.card import Card, Measurement, write_card
from normdet.weights.facts import describe

# Options whose state an EvalNorm takes over as it is.
_BATCH_NORMS = ("BN", "SyncBN")


def to_fitted_eval_norm(
    cfg: CfgNode, out: str | Path, batches: int = 50, allow_unsafe: bool = False
) -> list[BlendRow]:
    """Turn the BN of a trained model into EvalNorm, learn its blend, and save the result.

    No weight changes. The images are those of `DATASETS.TRAIN`, without their labels, in batches of
    `SOLVER.IMS_PER_BATCH` as in training.

    Args:
        cfg: of the model as it was trained, `MODEL.WEIGHTS` its checkpoint.
        out: where the converted checkpoint goes.
        batches: how many to learn from.

    Returns:
        A :class:`normdet.convert.blend.BlendRow` per layer.

    Raises:
        NormdetError: a model without batch norm, or files that cannot be read or written.
    """
    register_datasets(cfg)
    model, _ = load_model(cfg, allow_unsafe=allow_unsafe)
    model = to_eval_norm(model)
    rows = fit_eval_norm(model, _unlabelled(cfg, batches))
    converted = cfg.clone()
    for key in (part.key for part in NORMED.values()):
        option = read_stated(get(cfg, key))
        if option.norm in _BATCH_NORMS:
            put(converted, key, str(replace(option, norm="EvalNorm")))
    save_file({"model": model.state_dict(), "normdet": describe(converted)}, out)
    write_card(out, converted, _card(cfg.MODEL.WEIGHTS, rows))
    return rows


def _card(source: str, rows: list[BlendRow]) -> Card:
    layers = [
        {"layer": r.layer, "blend": r.blend, "under BN": r.error_of_bn, "under EvalNorm": r.error}
        for r in rows
    ]
    return Card(
        summary=f"{Path(source).name} with its BN read out as EvalNorm. No weight was changed.",
        source=source,
        measured=[
            Measurement(
                "Mean squared distance of each layer's output from its output in training mode, "
                "as a share of that output's variance, on the images the blend was fitted to",
                layers,
            )
        ],
        limits=["The distances are of the images that were fitted, and no AP was measured."],
    )


def _unlabelled(cfg: CfgNode, batches: int) -> Iterator[list[dict]]:
    for batch in itertools.islice(build_train_loader(cfg, max(cfg.SEED, 0)), batches):
        yield [{"image": example["image"]} for example in batch]
