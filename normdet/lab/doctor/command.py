"""The command: read the arguments, the model and the images; print and write the results."""

import argparse
import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from rich.progress import track
from tabulate import tabulate
from torch import nn

from normdet.arguments import add_common, check_counts
from normdet.config import load_config
from normdet.data.images import Images, find_images, named_images, sample
from normdet.data.input_record import read_record
from normdet.engine.norm_page import write_norm_page
from normdet.engine.run import use_device_at_hand
from normdet.errors import NormdetError
from normdet.files.anonymous import Numbers, hiding, key_beside
from normdet.keys import norm_option
from normdet.weights import Checkpointer

from .examination import examine, layers_to_watch
from .report import HEAD, cells, write_report
from .rows import BATCHES
from .verdict import Invocation, next_commands, reading, verdict

# The next commands repeat up to this many image paths; of more, their folders.
NAMED = 8
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+|SEED|OUTPUT_DIR|VERSION")


def main(argv: Sequence[str] | None = None) -> int:
    """Examine a model on images, or draw the norms of a training run.

    Raises:
        NormdetError: a file cannot be read or written, there are no images, or the model was never
            trained or has no stored statistics.
    """
    args = parse_arguments(argv)
    if args.run:
        print(f"norms of the run: {write_norm_page(args.run)}")
        return 0
    numbers = None
    if args.anonymize:
        places = [*args.images, *(args.reference or ())]
        numbers = Numbers(map(Path, places), key_beside(args.out), own=[args.out])
    with hiding(numbers):
        return _examine(args, numbers)


def _examine(args: argparse.Namespace, numbers: Numbers | None) -> int:
    cfg = load_config(args.config_file, args.opts, args.norm, args.norm_parts)
    cfg.MODEL.WEIGHTS = args.weights
    use_device_at_hand(cfg)
    files = named_images(args.images, args.dataset, cfg.DATASETS.ROOT)
    if not files:
        raise NormdetError("no images: name files or folders, or --dataset NAME")
    folder = _folder(args.out)
    model = build_model(cfg)
    layers_to_watch(model)  # raises before weights are downloaded
    checkpointer = Checkpointer(model, cfg=cfg, allow_unsafe=args.allow_unsafe_weights)
    checkpointer.load(args.weights, checkpointables=[])
    trained_with = read_record(cfg, Path(args.weights).parent).window
    # A dataset's files are windowed already; other files may need the model's window.
    window = "none" if args.dataset else trained_with
    images = _reader(files, args.max_images, cfg, model, window)
    reference = None
    if args.reference:
        others = find_images(args.reference)
        reference = _reader(others, args.max_images, cfg, model, trained_with)
    found = examine(
        model,
        _shown(images, "images"),
        reference=reference and _shown(reference, "reference"),
        forward=body(model),
        batches={*BATCHES, args.images_per_gpu},
    )
    call = Invocation(
        config_file=args.config_file,
        weights=args.weights,
        norm=str(norm_option(cfg, "backbone")),
        images=[] if args.dataset else _to_name(args.images),
        dataset=args.dataset,
        norm_flag=args.norm,
        norm_parts=args.norm_parts or (),
        images_per_gpu=args.images_per_gpu,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        opts=args.opts,
    )
    notes = [*checkpointer.report.warnings, *found.notes]
    for reader in filter(None, (images, reference)):
        if reader.faults:
            left = f"left out {len(reader.faults)} of {len(reader.files)} images"
            notes.append(f"{left}: {'; '.join(reader.faults[:3])}")
    print(tabulate([cells(row) for row in found.stages], HEAD, disable_numparse=True))
    print(f"\n{reading()}")
    for note in notes:
        print(f"note: {note}")
    print(f"\n{found.images} images: {verdict(found, call)}\n\nnext:")
    for line in next_commands(found, call):
        print(f"  {line}")
    if numbers:
        notes = [numbers.hide(note) for note in notes]
        call = dataclasses.replace(call, images=[numbers.hide(path) for path in call.images])
    write_report(found, call, notes, folder)
    print(f"\nreport: {folder / 'doctor.html'}")
    return 0


def body(model: nn.Module) -> Callable[[Any], Any]:
    """A function that runs a detector up to its last norm with statistics: the backbone, or all."""
    names = list(layers_to_watch(model))
    for part in ("backbone.bottom_up", "backbone"):
        if all(name.startswith(f"{part}.") for name in names):
            backbone = model.get_submodule(part)
            return lambda batch: backbone(model.preprocess_image(batch).tensor)
    return model


def _reader(
    files: Sequence[Path], count: int, cfg: CfgNode, model: nn.Module, window: str
) -> Images:
    return Images(sample(files, count), cfg, model.backbone.size_divisibility, window)


def _shown(images: Images, what: str):
    """The images, with a progress bar on a terminal."""
    return track(images, what, total=len(images.files), disable=not os.isatty(1), transient=True)


def _to_name(paths: Sequence[str]) -> list[str]:
    """The paths, or their folders if they are too many for a command line."""
    if len(paths) <= NAMED:
        return list(paths)
    return sorted({path if os.path.isdir(path) else os.path.dirname(path) or "." for path in paths})


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NormdetError(f"--out {out} cannot be made: {error.strerror}") from error
    return out


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command's words."""
    parser = argparse.ArgumentParser(
        prog="normdet doctor",
        description="Say how far images lie from the statistics that a BN or FrozenBN model has "
        "stored, whether a learnable norm is worth it, and what to run next.",
        epilog=reading(),
    )
    add = parser.add_argument
    add_common(parser, "--config-file", help="the model's config")
    add("--weights", metavar="FILE", help="its weights, with BN's statistics")
    add_common(parser, "--norm")
    add_common(parser, "--norm-parts")
    add("--dataset", metavar="NAME", help="instead of IMAGES; as in DATASETS.TRAIN")
    add(
        "--reference",
        action="append",
        metavar="PATH",
        help="compare with these images instead of what is stored; may be repeated",
    )
    add(
        "--max-images", type=int, default=64, metavar="N",
        help="look at N images, evenly spaced (64)",
    )  # fmt: skip
    add("--images-per-gpu", type=int, default=2, metavar="N", help="images a GPU in training (2)")
    add(
        "--out", type=Path, default=Path("output/doctor"), metavar="DIR",
        help="folder of the report",
    )  # fmt: skip
    add_common(parser, "--anonymize", default=False)
    add_common(parser, "--allow-unsafe-weights")
    add("--run", type=Path, metavar="OUTPUT_DIR", help="draw a training run's norms instead")
    add("rest", nargs="*", metavar="IMAGES", help="files and folders, then KEY VALUE of the config")
    args = parser.parse_intermixed_args(argv)
    places = (i for i, word in enumerate(args.rest) if _KEY.fullmatch(word))
    split = next((i for i in places if not os.path.exists(args.rest[i])), len(args.rest))
    args.images, args.opts = args.rest[:split], args.rest[split:]
    if not args.run and not (args.config_file and args.weights):
        raise NormdetError("--config-file and --weights are needed, or --run OUTPUT_DIR")
    check_counts(args, "max_images", "images_per_gpu")
    return args
