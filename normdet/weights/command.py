"""`normdet inspect`: say what a weights file is, which config it needs, what a model loads."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from torch import nn

from normdet.arguments import add_common
from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.files.versions import need_export
from normdet.weights import (
    Imported,
    UnreadableFileError,
    import_weights,
    load_file,
    load_model,
    required_config,
)
from normdet.weights.facts import BACKBONE, DIALECT, FORMAT, MEAN, STD, STRIDE, depth, find
from normdet.weights.importers import unwrap
from normdet.weights.integrity import unusable

_CONVENTIONS = {
    STRIDE: "stride in the first 1x1 convolution", FORMAT: "channel order", MEAN: "pixel mean",
    STD: "pixel std", DIALECT: "dialect of weight standardization",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the named file is; with a config also what a model loads from it.

    Returns:
        1 if the file has values that no trained network has, else 0.

    Raises:
        NormdetError: the file cannot be read, is of a network that detectron2 cannot build, or the
            config would misuse it.
    """
    args = parse_arguments(argv)
    checkpoint = unwrap(_read(args.weights, args.allow_unsafe_weights), args.weights)
    imported = import_weights(checkpoint, args.weights)
    bad = unusable(checkpoint["model"])
    for title, value in describe_file(imported, checkpoint["model"], bad).items():
        print(f"{title}: {value}")
    for note in imported.notes:
        print(f"note: {note}")
    keys = required_config(imported.facts, imported.model)
    if args.config_file is None:
        print(f"\nconfig keys it needs:\n{key_value_pairs(keys)}")
    else:
        cfg = _config(args)
        print(f"\nto add to the config:\n{key_value_pairs(differing(cfg, keys)) or 'nothing'}")
    assumed = [key for key in imported.facts.assumed if key in keys]
    if assumed:
        print(f"nothing in the file tells {', '.join(assumed)}: that is only usual for its kind")
    if args.config_file is not None and not bad:
        model, report = load_model(cfg, args.weights, allow_unsafe=args.allow_unsafe_weights)
        print(f"\n{report}")  # its warnings are logged on loading
        if args.flops:
            print(f"\n{_flops(cfg, model)}")
    return 1 if bad else 0


def describe_file(
    imported: Imported, tensors: Mapping[str, Any], bad: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Describe a file, as titles and their text.

    Args:
        imported: the importer's result.
        tensors: its tensors by its own names.
        bad: those with values that no trained network has, each with the reason.
    """
    facts = imported.facts
    norm = facts.norms.get(BACKBONE)
    shown = facts.shown.get(BACKBONE) or ("BN" if facts.folded else "not known")
    layers = depth(imported.model)
    unknown = " (nothing tells whether with WS)" if shown == "GN" else ""
    text = {
        "layout": imported.layout,
        "tensors": f"{len(tensors)}, {sum(t.numel() for t in tensors.values()):,} numbers",
        "values": "; ".join(f"{name} {why}" for name, why in list(bad.items())[:3]) if bad
        else "all finite",
        "backbone": f"ResNet-{layers}" if layers else "not known",
        "norm of the backbone": norm or shown + unknown,
        "batch statistics": (
            "folded into the affine, valid only frozen" if facts.folded
            else "there" if any(key.endswith("running_var") for key in imported.model)
            else "none"
        ),
    }  # fmt: skip
    for key, title in _CONVENTIONS.items():
        if key == DIALECT and key not in facts.settings:
            continue
        value = facts.settings.get(key, "not known")
        text[title] = f"{value} (usual for its kind)" if key in facts.assumed else f"{value}"
    for why in dict.fromkeys(imported.left_out.values()):
        names = [name for name, reason in imported.left_out.items() if reason == why]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        text[f"left out ({why})"] = ", ".join(names[:3]) + more
    return text


def _flops(cfg: CfgNode, model: nn.Module) -> str:
    """A table of the parts' multiply-adds for one image of noise of the size tests have."""
    side = cfg.INPUT.MIN_SIZE_TEST or 512
    size = side, min(side * 4 // 3, max(cfg.INPUT.MAX_SIZE_TEST, side))
    generator = torch.Generator().manual_seed(0)
    shape = (len(cfg.MODEL.PIXEL_MEAN), *size)
    image = torch.randint(0, 256, shape, generator=generator).float()
    with need_export("--flops"):
        from normdet.modeling.flops import flops_by_part
    rows = flops_by_part(model.eval(), [{"image": image}])
    total = sum(row.flops.total() for row in rows)
    names = dict.fromkeys(operator for row in rows for operator in row.flops)
    lines = [
        [row.part, *(row.flops[name] / 1e9 for name in names), row.flops.total() / total]
        for row in rows
    ]
    lines.append(["all", *(sum(row.flops[n] for row in rows) / 1e9 for n in names), 1.0])
    formats = (None, *[".3f"] * len(names), ".1%")
    table = tabulate(lines, ["part", *names, "share"], floatfmt=formats)
    return f"multiply-adds for {size[0]} x {size[1]} pixels of noise, 1e9:\n{table}"


def differing(cfg: CfgNode, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys whose values in `cfg` differ."""
    return {key: value for key, value in keys.items() if _plain(find(cfg, key)) != _plain(value)}


def key_value_pairs(keys: Mapping[str, Any]) -> str:
    """`KEY VALUE` pairs to put behind a command."""
    return " ".join(f"{key} {shlex.quote(str(value))}" for key, value in keys.items())


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read(source: str, allow_unsafe: bool) -> dict[str, Any]:
    try:
        local = PathManager.get_local_path(source)
    except Exception as error:  # path handlers raise errors of any kind
        raise UnreadableFileError(f"{source} cannot be fetched: {error}") from error
    return load_file(local, allow_unsafe=allow_unsafe)


def _config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts, args.norm, args.norm_parts)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command's words."""
    parser = argparse.ArgumentParser(
        prog="normdet inspect",
        description="Say what a weights file is, which config it needs, and what a model takes.",
    )
    parser.add_argument("weights", help="a weights file, or its address in detectron2's model zoo")
    add_common(parser, "--config-file", help="build its model, load the file, and report")
    add_common(parser, "--norm", help="as --norm of `normdet train`")
    add_common(parser, "--norm-parts")
    parser.add_argument(
        "--flops", action="store_true", help="count what an image takes, part by part"
    )
    add_common(parser, "--allow-unsafe-weights")
    add_common(parser, "opts")
    args = parser.parse_intermixed_args(argv)
    if args.config_file is None and args.flops:
        raise NormdetError("--flops counts those of a config's model: give --config-file too")
    if args.config_file is None and (args.opts or args.norm):
        raise NormdetError("--norm and KEY VALUE pairs change a config: give --config-file too")
    return args
