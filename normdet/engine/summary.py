"""A run as text: the config's differences, the table of parts and the AP table."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg
from tabulate import tabulate
from torch import nn

from normdet import options
from normdet.engine.one_value import images_at_once, norms_of_one_batch
from normdet.keys import add_normdet_config
from normdet.modeling import describe_norms
from normdet.weights.checkpointer import LoadReport

_AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def flat(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of `cfg` with its value; tuples become lists, as YAML has no tuples."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _lists(value)


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def config_diff(cfg: CfgNode) -> str:
    """The lines `KEY VALUE` in which `cfg` differs from detectron2's and normdet's defaults."""
    default = get_cfg()
    add_normdet_config(default)
    known = dict(flat(default))
    return "\n".join(f"{k} {v}" for k, v in flat(cfg) if k not in known or known[k] != v)


def batch_of_one(cfg: CfgNode, model: nn.Module, workers: int) -> str:
    """A sentence if a norm that needs a batch would train on single images, else `""`."""
    norms = norms_of_one_batch(model, workers).values()
    alone = {str(getattr(norm, "option", type(norm).__name__)) for norm in norms}
    if images_at_once(cfg, workers) > 1 or not alone:
        return ""
    independent = [n for n in options.names("norm") if not options.METHODS[n].needs_batch]
    return (
        f"a worker sees one image at a time, and {', '.join(sorted(alone))} takes statistics from "
        f"a batch of them; {', '.join(independent)} need only one"
    )


def by_dataset(results: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """Results by dataset name, which detectron2 leaves out if there is one dataset."""
    if not results:
        return {}
    return {names[0]: results} if len(names) == 1 else dict(results)


def results_table(results: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The AP table: a row for every dataset and task, a dash where there is nothing to measure.

    A task that measures no AP has columns of its own.
    """
    found = [
        (dataset, task, metrics)
        for dataset, tasks in by_dataset(results, names).items()
        for task, metrics in tasks.items()
    ]
    own = dict.fromkeys(name for _, _, metrics in found if "AP" not in metrics for name in metrics)
    columns = own or _AP_COLUMNS
    rows = [[*names, *(_cell(m.get(column)) for column in columns)] for *names, m in found]
    return tabulate(rows, ["dataset", "task", *columns], disable_numparse=True)


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def jsonable(results: Any) -> Any:
    """`results` with plain numbers, and None for NaN, which JSON does not have."""
    if isinstance(results, Mapping):
        return {key: jsonable(value) for key, value in results.items()}
    return float(results) if math.isfinite(results) else None


def parts_table(
    model: nn.Module, report: LoadReport, started: Sequence[str] = (), images: int = 0
) -> list[dict[str, Any]]:
    """A row for every part: its norm, whether it is trained, where its weights came from.

    Args:
        started: names of the norms that were started from data.
    """
    matched = set(report.matched)
    rows = []
    for part in describe_norms(model):
        loaded = sum(name in matched for name in part.names)
        source = "start values" if loaded == 0 else report.source
        if 0 < loaded < len(part.names):
            source += f" ({loaded} of {len(part.names)} tensors)"
        if any(f"{name}.weight" in part.names for name in started):
            source += f"; norms from data, {images} images"
        rows.append(
            {
                "part": part.part,
                "norm": part.norm,
                "training": part.training,
                "parameters": part.parameters,
                "weights": source,
            }
        )
    return rows


def parts_text(rows: list[dict[str, Any]]) -> str:
    """:func:`parts_table` as text."""
    return tabulate(rows, headers="keys", intfmt=",")
