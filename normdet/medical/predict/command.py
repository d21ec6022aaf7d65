"""The command: read the model and the settings from the arguments, then predict each image."""

import argparse
import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from rich.console import Console
from rich.progress import Progress
from torch import nn

from normdet.arguments import add_common
from normdet.config import load_config
from normdet.data.choice import CHANNEL_FORMS, PLANE_FORMS, parse_choice
from normdet.data.input_record import InputRecord, read_record, window_of
from normdet.data.slices import MAX_PIXELS, Slice, Source
from normdet.data.window import FORMS, apply_window, parse_window, window_limits
from normdet.engine.run import use_device_at_hand
from normdet.errors import NormdetError
from normdet.evaluation.detector import Detector, Limits, Windowed
from normdet.evaluation.tiles import Detection, check_tiling
from normdet.export.fold import deployable
from normdet.files.anonymous import Numbers, hiding, key_beside
from normdet.files.faults import Faults
from normdet.files.stamp import stamp_of
from normdet.medical.predict.output import FOLDERS, Output, forget
from normdet.medical.predict.overlay import LARGEST, draw
from normdet.medical.readers import find_sources, nifti
from normdet.medical.readers.find import numbered
from normdet.medical.windowed import read_windowed
from normdet.weights.model import load_model

# Flags that change a model's record of its input.
_OF_INPUT = ("window", "axis", "neighbours", "channels", "planes")
# All masks of a whole image are in memory at its full size.
MAX_WHOLE = 4096 * 4096


def main(argv: Sequence[str] | None = None) -> int:
    """Predict the images that the arguments name, and print a summary.

    Returns:
        0, or 1 if images were skipped.

    Raises:
        NormdetError: the weights, the config or a folder cannot be used; under `--on-error stop`
            also an image that cannot be read.
    """
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg, record = _config(args)
    return predict(args, cfg, record, _load(cfg, args.allow_unsafe_weights))


def predict(args: argparse.Namespace, cfg: CfgNode, record: InputRecord, model: nn.Module) -> int:
    """Run a loaded model over the images of the arguments; see :func:`main`."""
    numbers = None
    if args.anonymize:
        numbers = Numbers(map(Path, args.images), key_beside(args.out), own=[args.out])
    with hiding(numbers):
        return _predict(args, cfg, record, model, numbers)


def _predict(
    args: argparse.Namespace,
    cfg: CfgNode,
    record: InputRecord,
    model: nn.Module,
    numbers: Numbers | None,
) -> int:
    console = Console(stderr=True)
    faults = Faults(
        args.on_error,
        lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    sources = _sources(args, faults)
    if numbers:
        sources = [numbered(one, numbers) for one in sources]
    if args.restart:
        forget(args.out)
    detector = Detector(
        model,
        cfg,
        tile=cfg.INPUT.TILE,
        overlap=cfg.INPUT.TILE_OVERLAP,
        batch=args.batch,
        threshold=args.score_threshold,
        statistics=cfg.INPUT.TILE_STATISTICS,
    )
    whole = cfg.MODEL.MASK_ON and not cfg.INPUT.TILE
    settings = _settings(args, cfg, record) | {"anonymized": numbers is not None}
    with closing(Output(args.out, settings, record, cfg.MODEL.MASK_ON)) as output:
        images = _Images(args, record, output, faults, MAX_WHOLE if whole else None)
        try:
            _run(detector, images, sources, console)
        except KeyboardInterrupt:
            again = "the same command, without --restart," if args.restart else "the same command"
            raise KeyboardInterrupt(
                f"stopped after {len(images.names)} images; {again} goes on with the others"
            ) from None
        totals = output.gather(sorted(images.names))
    print(_summary(images, totals, faults.count, args.out))
    if numbers:
        print(f"names:   {key_beside(args.out)} has those of the numbers; keep it to yourself")
    return 1 if faults.count else 0


def _run(
    detector: Detector, images: "_Images", sources: Sequence[Source], console: Console
) -> None:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tracked = progress.track(sources, description="predicting")
        for item, limits, detections in detector.stream(images.read(tracked)):
            images.keep(item, limits, detections)


def _sources(args: argparse.Namespace, faults: Faults) -> list[Source]:
    """The sources to predict, without the files of an earlier run if `--out` is among them."""
    out = args.out.resolve()
    own = {out / name for name in FOLDERS}
    found = find_sources(args.images, report=faults)
    sources = [one for one in found if own.isdisjoint(one.paths[0].resolve().parents)]
    if not sources:
        raise NormdetError(f"no images but those that are in --out {args.out} of an earlier run")
    return sources


class _Images:
    """The images to predict, and the record of those that are done.

    Attributes:
        names: of images whose results are in the output folder.
        sources: by an image's name, its source and the stamp of its files.
        before: how many were done when the run began.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        record: InputRecord,
        output: Output,
        faults: Faults,
        max_whole: int | None,
    ):
        self._args, self._record, self._output, self._faults = args, record, output, faults
        self._max_whole = max_whole
        self.names: list[str] = []
        self.sources: dict[str, tuple[Source, str]] = {}
        self.before = 0

    def read(self, sources: Sequence[Source]) -> Iterator[Windowed]:
        """The slices without results, with their limits."""
        for source in sources:
            try:
                stamp = stamp_of(source.paths)
                # A file of one image need not be opened.
                if source.kind == "image" and self._done(source.name, stamp):
                    self.sources[source.name] = source, stamp
                    continue
                yield from self._new_slices(source, stamp)
            except NormdetError as error:
                self._faults(str(error))

    def keep(self, item: Slice, limits: Limits, detections: Sequence[Detection]) -> None:
        """Write one image's results."""
        classes, size = self._record.classes, item.pixels.shape[:2]
        overlay = draw(_shown(item, limits), size, detections, classes, item.name)
        source, stamp = self.sources[item.name]
        file_name = _file_name(source, self._args.anonymize)
        self._output.write(item, stamp, file_name, detections, overlay)
        self.names.append(item.name)

    def _new_slices(self, source: Source, stamp: str) -> Iterator[Windowed]:
        slices = read_windowed(
            source,
            parse_window(self._window(source)),
            axis=self._record.axis,
            neighbours=self._record.neighbours,
            choice=parse_choice(self._record.channels, self._record.planes),
            max_pixels=self._args.max_pixels,
            report=self._faults,
        )
        for item, limits in slices:
            if item.name in self.sources:
                self._faults(f"{item.source}: another image has the name {item.name} already")
                continue
            self.sources[item.name] = source, stamp
            height, width = item.pixels.shape[:2]
            if self._max_whole and height * width > self._max_whole:
                self._faults(
                    f"{item.source} has {width}x{height} pixels, more than the "
                    f"{self._max_whole:,} whose masks are found at once: give --tile 512"
                )
            elif not self._done(item.name, stamp):
                yield item, limits

    def _window(self, source: Source) -> str:
        return self._args.window or window_of(source.paths[0], self._record.window)

    def _done(self, name: str, stamp: str) -> bool:
        if not self._output.done(name, stamp):
            return False
        self.names.append(name)
        self.before += 1
        return True


def _config(args: argparse.Namespace) -> tuple[CfgNode, InputRecord]:
    """The config of the model and the record of its input, as changed by the flags."""
    beside = Path(args.weights).parent / "config.yaml"
    file = args.config_file or beside
    if not args.config_file and not beside.is_file():
        raise NormdetError(
            f"{args.weights} has no config.yaml beside it, as training leaves one: "
            "give --config-file"
        )
    opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    cfg = load_config(file, opts, args.norm, args.norm_parts)
    use_device_at_hand(cfg)
    if args.tile is not None:
        cfg.INPUT.TILE = args.tile
    if args.overlap is not None:
        cfg.INPUT.TILE_OVERLAP = args.overlap
    if args.tile_statistics:
        cfg.INPUT.TILE_STATISTICS = args.tile_statistics
    check_tiling(cfg.INPUT.TILE, cfg.INPUT.TILE_OVERLAP)
    for part in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        part.SCORE_THRESH_TEST = args.score_threshold
    record = read_record(cfg, beside.parent)
    changes = {key: getattr(args, key) for key in _OF_INPUT}
    record = dataclasses.replace(record, **{k: v for k, v in changes.items() if v is not None})
    if args.classes:
        names = args.classes.split(",")
        if len(names) != len(record.classes):
            raise NormdetError(
                f"--classes names {len(names)} classes, the model has {len(record.classes)}"
            )
        record = dataclasses.replace(record, classes=names)
    parse_window(record.window)
    parse_choice(record.channels, record.planes)
    return cfg, record


def _load(cfg: CfgNode, allow_unsafe: bool) -> nn.Module:
    model, report = load_model(cfg, allow_unsafe=allow_unsafe)
    lacking = [*report.missing, *report.reinitialized]
    if lacking:
        raise NormdetError(
            f"{cfg.MODEL.WEIGHTS} does not fill {len(lacking)} of the model's tensors, such as "
            f"{lacking[0]}: it is not a trained detector of this config"
        )
    return deployable(model)


def _settings(args: argparse.Namespace, cfg: CfgNode, record: InputRecord) -> dict:
    """The settings that predictions depend on, without the images."""
    weights = Path(args.weights)
    return {
        "weights": str(weights.absolute()) if weights.exists() else args.weights,
        "weights bytes": weights.stat().st_size if weights.exists() else None,
        "weights time": weights.stat().st_mtime_ns if weights.exists() else None,
        "score threshold": args.score_threshold,
        "tile": cfg.INPUT.TILE,
        "overlap": cfg.INPUT.TILE_OVERLAP if cfg.INPUT.TILE else None,
        "tile statistics": cfg.INPUT.TILE_STATISTICS if cfg.INPUT.TILE else None,
        "input size": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
        "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        **dataclasses.asdict(record),
        "config": _digest(cfg),
    }


def _digest(cfg: CfgNode) -> str:
    """A digest of all keys that predictions can depend on."""
    seen = cfg.clone()
    seen.MODEL.DEVICE = seen.MODEL.WEIGHTS = ""
    text = "".join(part.dump() for part in (seen.MODEL, seen.INPUT, seen.TEST))
    return hashlib.blake2b(text.encode()).hexdigest()[:16]


def _shown(item: Slice, limits: Limits) -> np.ndarray:
    """uint8 pixels to draw on; an image far larger than its overlay is subsampled first."""
    step = max(1, max(item.pixels.shape[:2]) // (2 * LARGEST))
    small = dataclasses.replace(item, pixels=item.pixels[::step, ::step])
    if limits is None and small.pixels.dtype != np.uint8:
        limits = window_limits(parse_window("percentile"), [small])
    return apply_window(small.pixels, limits)


def _file_name(source: Source, anonymous: bool) -> str:
    """The file's name; for DICOM the image's, since files are often named after patients."""
    return source.name if anonymous or source.kind == "dicom" else str(source.paths[0])


def _summary(images: _Images, totals: dict[str, int], skipped: int, out: Path) -> str:
    found = ", ".join(f"{count} {name}" for name, count in totals.items())
    before = f" ({images.before} of them before)" if images.before else ""
    plural = "s" if skipped > 1 else ""
    faults = f"; skipped over {skipped} fault{plural}, see above" if skipped else ""
    return f"{len(images.names)} images{before}: {found}{faults}\nresults: {out}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command's words."""
    parser = argparse.ArgumentParser(
        prog="normdet predict",
        description="Find objects with a trained detector. An interrupted run goes on where it "
        "was when the same command is given again.",
        epilog="exit code: 0 all done, 1 some images were skipped, 2 nothing can be done",
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="files or folders: PNG, JPEG, TIFF, DICOM, ...")
    add("--weights", required=True, metavar="FILE", help="the trained model's checkpoint")
    add_common(parser, "--config-file", help="its config; by default config.yaml beside it")
    add_common(parser, "--norm", help="the --norm it was trained with, if not in the config")
    add_common(parser, "--norm-parts")
    add("--out", required=True, type=Path, metavar="DIR", help="where the results go")
    add("--restart", action="store_true", help="forget what DIR holds of earlier runs")
    add("--score-threshold", type=float, default=0.5, metavar="P", help="least score, 0.5")
    add("--batch", type=int, default=1, metavar="N", help="images or tiles at a time")
    add("--tile", type=int, metavar="N", help="tiles of N pixels, 0 for none; INPUT.TILE")
    add("--overlap", type=int, metavar="N", help="pixels tiles share; INPUT.TILE_OVERLAP")
    add(
        "--tile-statistics", choices=["image", "own"],
        help="where norms take a tile's statistics; INPUT.TILE_STATISTICS",
    )  # fmt: skip
    add("--window", metavar="WINDOW", help=f"{FORMS}; by default that of training")
    add("--axis", choices=list(nifti.AXES), help="along which volumes are cut; as in training")
    add("--neighbours", type=int, metavar="N", help="as given to normdet prepare")
    add("--channels", metavar="A,B,C", help=f"{CHANNEL_FORMS}; as in training")
    add("--planes", metavar="N", help=f"{PLANE_FORMS}; as in training")
    add("--classes", metavar="A,B", help="names of the classes; by default those of training")
    add_common(parser, "--anonymize", default=False)
    add("--on-error", choices=["skip", "stop"], default="skip", help="what to do about a bad image")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="largest image read")
    add_common(parser, "--allow-unsafe-weights")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys")
    args = parser.parse_intermixed_args(argv)
    if args.batch < 1 or not 0 <= args.score_threshold <= 1:
        raise NormdetError("--batch must be 1 or more, and --score-threshold from 0 to 1")
    return args
