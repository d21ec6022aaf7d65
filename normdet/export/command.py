"""The command: load, make deployable, write, open again, compare, and print the differences."""

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from normdet.arguments import add_common
from normdet.config import load_config
from normdet.data.images import Images, find_images
from normdet.data.input_record import read_record
from normdet.errors import NormdetError
from normdet.weights.card import Card, Measurement, write_card
from normdet.weights.model import load_model

from .check import BOX, SCORE, Row, compare
from .fold import deployable
from .formats import FORMATS, export
from .stock import run_without_normdet, stock_config, write_stock
from .wrap import BACKBONE, DETECTOR, Wrapped

_SUFFIX = {"onnx": ".onnx", "torchscript": ".ts", "pt2": ".pt2", "stock": ".yaml"}


def main(argv: Sequence[str] | None = None) -> int:
    """Export the model that the arguments name.

    Returns:
        0, or 1 if the file does not find the same as the model.

    Raises:
        NormdetError: bad arguments, or a model that the format cannot hold.
    """
    argv = list(argv or ())
    args = parse_arguments(argv)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"], args.norm,
                      args.norm_parts)  # fmt: skip
    if not cfg.MODEL.WEIGHTS:
        raise NormdetError("MODEL.WEIGHTS names no weights to export")
    if args.format == "stock":
        stock_config(cfg, "")  # refuse before anything is loaded
    model, _ = load_model(cfg, allow_unsafe=args.allow_unsafe_weights)
    images = _images(cfg, args.images)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write = _write_stock if args.format == "stock" else _write
    how, rows = write(cfg, model, images, args)
    table = [_shown(row, args.part) for row in rows]
    print(tabulate(table, headers="keys", floatfmt=".2g"))
    card = write_card(args.out, cfg, _card(cfg, args, argv, how, table))
    print(f"{args.out}\n{card}")
    if all(row.passes for row in rows):
        return 0
    print(f"differs by more than {BOX} pixels or {SCORE}: do not use it unseen")
    return 1


def _images(cfg: CfgNode, paths: Sequence[str]) -> list[Tensor]:
    """The images as a detector reads them in a test; without any, one image of noise."""
    if not paths:
        print("no --images: checked on noise alone")
        channels, side = len(cfg.MODEL.PIXEL_MEAN), min(cfg.INPUT.MIN_SIZE_TEST or 512, 512)
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(0, 256, (channels, side, side * 4 // 3), generator=generator).float()]
    folder = Path(cfg.MODEL.WEIGHTS).parent
    reader = Images(find_images(paths), cfg, 1, read_record(cfg, folder).window)
    images = [batch[0]["image"].float() for batch in reader]
    for fault in reader.faults:
        print(f"left out: {fault}")
    if not images:
        raise NormdetError("none of --images can be read")
    return images


def _write(cfg: CfgNode, model: nn.Module, images: list[Tensor], args) -> tuple[str, list[Row]]:
    original = Wrapped(model, args.part, images[0])
    wrapped = Wrapped(deployable(model), args.part, images[0])
    dynamic = not args.fixed_size
    how = export(wrapped, images[0], args.out, args.format, dynamic=dynamic)
    run = FORMATS[args.format][1](wrapped, args.out)
    seen = images if dynamic else [i for i in images if i.shape == images[0].shape]
    least = wrapped.least if args.format == "pt2" and dynamic else 1
    return how, compare(original, run, seen, dynamic=dynamic, least=least)


def _write_stock(cfg: CfgNode, model: nn.Module, images: list[Tensor], args):
    if args.part != DETECTOR:
        raise NormdetError("--format stock writes whole detectors: leave --part out")
    weights, how = write_stock(cfg, model, args.out)
    original = Wrapped(model, DETECTOR, images[0])
    with tempfile.TemporaryDirectory() as folder:
        found = run_without_normdet(args.out, weights, images, Path(folder))
    original.outputs = tuple(key for key in original.outputs if key != "pred_masks")
    results = iter(tuple(fields[key] for key in original.outputs) for fields in found)
    names = original.outputs

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        fields = model([{"image": x}])[0]["instances"].get_fields()
        return tuple(getattr(fields[name], "tensor", fields[name]) for name in names)

    original.module = _Function(plain)
    return how, compare(original, lambda x: next(results), images, dynamic=False)


class _Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor):
        return self.function(x)


def _shown(row: Row, part: str) -> dict:
    shown = asdict(row)
    shown["size"] = "{} x {}".format(*row.size)
    names = {"found": "maps" if part == BACKBONE else "objects", "boxes": "pixels off",
             "rest": "scores off" if part == DETECTOR else "maps off"}  # fmt: skip
    return {names.get(key, key): _text(value) for key, value in shown.items()}


def _text(value):
    return f"{value:.1e}" if isinstance(value, float) else value


def _card(cfg: CfgNode, args, argv: list[str], how: str, table: list[dict]) -> Card:
    size = "the example's alone" if args.fixed_size else "any"
    runtime = {"onnx": "onnxruntime", "torchscript": "torch.jit.load", "pt2": "torch.export.load",
               "stock": "detectron2, in a process without normdet"}[args.format]  # fmt: skip
    return Card(
        summary=f"A {args.part} as {args.format}, {_what(args)}.",
        source=cfg.MODEL.WEIGHTS,
        # Folders can name patients.
        command=shlex.join(["normdet", "export", *(Path(word).name or word for word in argv)]),
        facts={"made by": how, "sizes of images": size},
        measured=[Measurement(f"Run by {runtime} beside the model it was made from", table)],
        limits=["Scores below the config's threshold are left out, as in the config.",
                "Boxes are in pixels of the image given, which must be resized as in the config."],
        use=_use(args),
        language="python",
    )  # fmt: skip


def _what(args) -> str:
    if args.part == BACKBONE:
        return "with the pixels' mean and deviation; its outputs are maps, the finest first"
    return "with preprocessing of pixels and selection of objects"


def _use(args) -> list[str]:
    name = args.out.name
    return {
        "onnx": ["import onnxruntime", f'session = onnxruntime.InferenceSession("{name}")',
                 "found = session.run(None, {session.get_inputs()[0].name: image})"],
        "torchscript": ["import torch, torchvision", f'found = torch.jit.load("{name}")(image)'],
        "pt2": ["import torch, torchvision",
                f'found = torch.export.load("{name}").module()(pixels)'],
        "stock": ["from detectron2.config import get_cfg",
                  "from detectron2.engine import DefaultPredictor", "cfg = get_cfg()",
                  f'cfg.merge_from_file("{name}")',
                  f'cfg.MODEL.WEIGHTS = "{args.out.with_suffix(".pth").name}"',
                  "found = DefaultPredictor(cfg)(image)"],
    }[args.format]  # fmt: skip


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command's words."""
    parser = argparse.ArgumentParser(
        prog="normdet export",
        description="Write a trained model as a file that runs without normdet, and check it.",
    )
    add = parser.add_argument
    add_common(parser, "--config-file", required=True)
    add_common(parser, "--norm")
    add_common(parser, "--norm-parts")
    add("--format", required=True, choices=list(_SUFFIX), help="stock: plain detectron2")
    add("--part", default=DETECTOR, choices=(DETECTOR, BACKBONE), help="what to export")
    add("--out", required=True, type=Path, metavar="FILE", help="the file to write")
    add("--images", action="append", default=[], metavar="PATH",
        help="images or a folder of them to check the file on; may be repeated")  # fmt: skip
    add("--fixed-size", action="store_true", help="images are all of the first one's size")
    add_common(parser, "--allow-unsafe-weights")
    add_common(parser, "opts", help="config keys and their values, MODEL.WEIGHTS among them")
    args = parser.parse_intermixed_args(argv)
    if args.out.suffix != _SUFFIX[args.format]:
        raise NormdetError(f"--out {args.out}: name it *{_SUFFIX[args.format]}")
    return args
