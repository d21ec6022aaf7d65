"""Tables made from the code: methods, parts, keys, configs, commands."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

import normdet
from normdet import cli
from normdet.config import config_folder, config_names
from normdet.keys import USUAL_PARTS, get
from normdet.options import METHODS
from normdet.parts import NORMED

from .markdown import table

_ARXIV = re.compile(r"(\d{4}\.\d{4,5})")
_KINDS = {"norm": "norm", "activation": "activation", "weight": "weight", "init": "no norm"}


def methods() -> str:
    """Every method with what it computes, what it costs and when to take it."""
    rows = [
        [f"`{m.name}`", _KINDS[m.kind], m.statistics, m.cost, m.when, _linked(m.paper)]
        for m in METHODS.values()
    ]
    return table(["name", "is", "statistics over", "cost", "take it", "paper"], rows)


def names() -> str:
    """The names alone, kind by kind, each with its use."""
    rows = [[f"`{m.name}`", m.when] for m in METHODS.values()]
    return table(["option", "take it"], rows)


def _linked(paper: str) -> str:
    return _ARXIV.sub(r"[\1](https://arxiv.org/abs/\1)", paper)


def parts() -> str:
    """Every part's name and key, and whether `--norm` sets it by itself."""
    cfg = _defaults()
    rows = [
        [
            f"`{name}`", f"`{part.key}`", _value(get(cfg, part.key)),
            "yes" if name in USUAL_PARTS else "",
        ]
        for name, part in NORMED.items()
    ]
    return table(["part", "key", "default", "set by `--norm` alone"], rows)


def keys() -> str:
    """Every key that normdet adds, with its default and the comment it has in the code."""
    cfg, stock = _defaults(), dict(_flat(get_cfg()))
    methods = tuple(f"MODEL.NORMDET.{name}." for name in METHODS)
    told = dict(_comments())
    rows = [
        [f"`{key}`", _value(value), told.get(key, "")]
        for key, value in _flat(cfg)
        if key not in stock and not key.startswith(methods)
    ]
    return table(["key", "default", ""], rows)


def parameters() -> str:
    """The parameters of every method and their defaults."""
    rows = [
        [
            f"`MODEL.NORMDET.{method.name}.`",
            ", ".join(f"`{name} {value}`" for name, value in method.params.items()),
        ]
        for method in METHODS.values()
        if method.params
    ]
    return table(["keys", "names and defaults"], rows)


def configs() -> str:
    """Every config of a detector with its first comment."""
    rows = []
    for name in config_names():
        text = (config_folder() / name).read_text()
        if name.split("/")[1] not in ("heads", "schedules", "weights"):
            rows.append([f"`{name}`", _header(text)])
    return table(["config", ""], rows)


# The first line of a config that repeats a published row.
PUBLISHED = re.compile(
    r"# (?P<what>.+)\. Published: box (?P<box>\d+\.\d)(?:, mask (?P<mask>\d+\.\d))?"
    r"(?:, (?P<more>(?:keypoints|PQ) \d+\.\d))? \((?P<source>.+)\)\.$"
)


def published() -> str:
    """What others measured on COCO, from the first lines of the configs that repeat it."""
    rows = []
    for name in config_names():
        first = (config_folder() / name).read_text().partition("\n")[0]
        if found := PUBLISHED.match(first):
            command = f"`normdet train --num-gpus 8 --config-file {name}`"
            what, box, mask, more, source = found.group("what", "box", "mask", "more", "source")
            rows.append([what, box, mask or "", more or "", source, "not run", command])
    theirs = [f"{metric}, others' measurement" for metric in ("box AP", "mask AP", "more")]
    return table(["", *theirs, "their source", "ours", "command"], rows)


def ways() -> str:
    """The ways to run a network with each norm, read from their tests."""
    from tests.modeling.ways import EXCEPTIONS, NORMS, WAYS

    rows = [[f"`{norm}`", *(EXCEPTIONS.get((norm, way), "yes") for way in WAYS)] for norm in NORMS]
    return table(["norm", *WAYS], rows)


def networks() -> str:
    """The networks that `normdet.normalize` is tested on, library by library."""
    from tests.surgery.networks import NETWORKS

    found: dict[str, list[str]] = {}
    for name in NETWORKS:
        library, _, rest = name.partition(" ")
        found.setdefault(library, []).append(rest)
    return table(["from", "networks"], [[name, ", ".join(rest)] for name, rest in found.items()])


def commands() -> str:
    """Every command with its one line of help."""
    parser = cli._parser()
    (actions,) = (a for a in parser._actions if a.choices and not a.option_strings)
    found = {action.dest: action.help for action in actions._choices_actions}
    rows = [[f"`normdet {name}`", text] for name, text in found.items()]
    return table(["command", ""], rows)


def _header(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def _comments() -> Iterator[tuple[str, str]]:
    """Keys and the comments that stand above them in `add_normdet_config`."""
    comment, complete = [], False
    for line in inspect.getsource(normdet.add_normdet_config).splitlines():
        line = line.strip()
        if line.startswith("#"):
            comment = [*([] if complete else comment), line.lstrip("# ")]
            complete = False
        elif match := re.match(r"(node|cfg)\.([A-Z][A-Z0-9_.]+) = ", line):
            prefix = {"node": "MODEL.NORMDET.", "cfg": ""}[match[1]]
            yield prefix + match[2], " ".join(comment)
            complete = True  # the next keys, without a line between, share the comment
        else:
            complete = True


def _defaults() -> CfgNode:
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    return cfg


def _flat(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    return f"`{value!r}`" if value == "" else f"`{value}`"
