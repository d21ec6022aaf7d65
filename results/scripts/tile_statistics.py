#!/usr/bin/env python3
"""Measure whose statistics the tiles of a large image should take, on mosaics of real squares.

python results/scripts/tile_statistics.py --data datasets/nuclei --out results/tile_statistics.csv \
    output/gn output/frn_tlu ...

Each folder holds a run of `normdet train`. A mosaic joins test squares and empty ones, which are
filled with the background of other squares. It is measured whole and in tiles. Written for each
way to take statistics: box AP; found objects in an empty square; among objects in the overlap of
two tiles the share that one of them finds alone; the ratio of a channel's root mean square to that
of the whole image (median and 95th percentile over channels and norms); and the processor's time.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image
from scipy import ndimage
from torch import nn

from normdet.config import load_config
from normdet.evaluation import detector as detector_module
from normdet.evaluation.detector import Detector
from normdet.evaluation.image_statistics import OneImage
from normdet.evaluation.measure import measured
from normdet.evaluation.tiles import Box, Detection, merge
from normdet.evaluation.truth import indexed
from normdet.export.fold import deployable
from normdet.ops.tiles import ImageMoments
from normdet.weights.model import load_model

SQUARE = 256
SCORE = 0.5  # of an object that counts as found
_COLUMNS = (
    "norm", "learned_eps", "statistics", "box_AP", "box_AP50", "objects_per_empty_square",
    "found_by_one_tile", "rms_ratio_median", "rms_ratio_p95", "seconds", "mosaics", "pixels",
)  # fmt: skip


@dataclass(frozen=True)
class Mosaic:
    """An image `(H, W, 3)`, COCO's annotations of it, and the corners (x, y) of empty squares."""

    pixels: np.ndarray
    boxes: list[list[float]]
    empty: list[tuple[int, int]]


def main() -> None:
    args = _parse()
    mosaics = _mosaics(args)
    rows = []
    for run in args.runs:
        cfg, model = _model(run)
        whole = [_moments(cfg, model, mosaic.pixels) for mosaic in mosaics]
        for name, way in _ways(args, any(map(len, whole))).items():
            row = {"norm": cfg.MODEL.RESNETS.NORM, "learned_eps": _learned_eps(cfg)}
            row |= {"statistics": name, **_measure(cfg, model, way, mosaics, whole, args)}
            rows.append(row | {"mosaics": len(mosaics), "pixels": len(mosaics[0].pixels)})
            print(rows[-1], flush=True)
            _write(args.out, rows)


# ---- the mosaics ---------------------------------------------------------------------------------


def _mosaics(args: argparse.Namespace) -> list[Mosaic]:
    content = json.loads((args.data / "val.json").read_text())
    known = {one["id"]: [] for one in content["images"]}
    for one in content["annotations"]:
        known[one["image_id"]].append(one["bbox"])
    files = [(one["file_name"], known[one["id"]]) for one in content["images"]]
    random = np.random.default_rng(0)
    order = random.permutation(len(files)).tolist()
    places = [(x, y) for y in range(args.squares) for x in range(args.squares)]
    filled = min(len(files) // args.mosaics, round(len(places) * args.filled))
    mosaics = []
    for k in range(args.mosaics):
        mine = [files[i] for i in order[k * filled : (k + 1) * filled]]
        random.shuffle(places)
        mosaics.append(_mosaic(mine, places, args, random))
    return mosaics


def _mosaic(
    files: Sequence[tuple[str, list]],
    places: Sequence[tuple[int, int]],
    args: argparse.Namespace,
    random: np.random.Generator,
) -> Mosaic:
    side = args.squares * SQUARE
    pixels, boxes, squares = np.zeros((side, side, 3), np.uint8), [], []
    for (name, found), (x, y) in zip(files, places, strict=False):
        square = np.array(Image.open(args.data / "images" / name).convert("RGB"))
        squares.append((square, found))
        pixels[y * SQUARE :, x * SQUARE :][:SQUARE, :SQUARE] = square
        boxes += [[left + x * SQUARE, top + y * SQUARE, w, h] for left, top, w, h in found]
    empty = [(x * SQUARE, y * SQUARE) for x, y in places[len(files) :]]
    for x, y in empty:
        source = squares[random.integers(len(squares))]
        pixels[y : y + SQUARE, x : x + SQUARE] = _background(*source, random)
    return Mosaic(pixels, boxes, empty)


def _background(square: np.ndarray, boxes: list, random: np.random.Generator) -> np.ndarray:
    """Noise with the values and the grain of a square's background, the darker half of it."""
    outside = np.ones(square.shape[:2], bool)
    for left, top, w, h in boxes:
        outside[int(top) : int(top + h) + 1, int(left) : int(left + w) + 1] = False
    values = np.sort(square[outside if outside.any() else ...].mean(-1).reshape(-1))
    values = values[: max(len(values) // 2, 1)]
    grain = ndimage.gaussian_filter(random.standard_normal(square.shape[:2]), 1)
    ranks = grain.reshape(-1).argsort().argsort() * len(values) // grain.size
    return values[ranks].reshape(*square.shape[:2], 1).round().astype(np.uint8)


# ---- the ways ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How a mosaic is measured: a tile's side (0: whole), and whose statistics.

    Attributes:
        at_once: the first pass takes this many tiles at a time; 0 for the usual number.
        sample: it takes this many tiles alone; 0 for all.
        share: it takes the whole image reduced to this fraction instead; 0 for tiles.
    """

    tile: int
    statistics: str = "own"
    at_once: int = 0
    sample: int = 0
    share: int = 0


def _ways(args: argparse.Namespace, adapts: bool) -> dict[str, Way]:
    ways = {"whole image": Way(0), "own": Way(args.tile)}
    if adapts:
        ways |= {
            "image": Way(args.tile, statistics="image"),
            "image, 1 tile at a time": Way(args.tile, statistics="image", at_once=1),
            "image, 4 tiles at a time": Way(args.tile, statistics="image", at_once=4),
            "image, from 16 tiles at once": Way(
                args.tile, statistics="image", at_once=16, sample=16
            ),
            "image, reduced to a half": Way(args.tile, statistics="image", share=2),
        }
    return {name: way for name, way in ways.items() if not args.ways or name in args.ways}


class _OfAnySize(ImageMoments):
    """Those of a map of one size serve for a map of another."""

    def of(self, index, channels, size, parts):
        if index < len(self.maps):
            self.maps[index].size = size
        return super().of(index, channels, size, parts)


def _first_pass(
    cfg: CfgNode, way: Way, pixels: np.ndarray, kept: list[ImageMoments]
) -> type[OneImage]:
    """:class:`OneImage` with the first pass of a way; its moments are put into `kept`."""

    class Altered(OneImage):
        def __init__(self, model: nn.Module):
            super().__init__(model)
            self._gathered = 0
            if way.share:
                self.moments = _OfAnySize()
                small = Image.fromarray(pixels).reduce(way.share)
                super().gather([_input(cfg, np.array(small))], [(0.0, 0.0, 1.0, 1.0)])
            kept.append(self.moments)

        def gather(self, inputs, cores):
            if way.share or (way.sample and self._gathered >= way.sample):
                return len(self.moments)
            self._gathered += len(inputs)
            return super().gather(inputs, cores)

    return Altered


def _scale(cfg: CfgNode) -> float:
    """How far the network sees a square enlarged."""
    return cfg.INPUT.MIN_SIZE_TEST / SQUARE


def _input(cfg: CfgNode, pixels: np.ndarray) -> dict:
    size = [round(length * _scale(cfg)) for length in pixels.shape[1::-1]]
    pixels = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    return {"image": torch.as_tensor(pixels[..., ::-1].copy()).permute(2, 0, 1).float()}


def _moments(cfg: CfgNode, model: nn.Module, pixels: np.ndarray) -> ImageMoments:
    """The moments of pixels that pass through the network at once."""
    one = OneImage(model)
    with torch.no_grad():
        one.gather([_input(cfg, pixels)], [(0.0, 0.0, 1.0, 1.0)])
    return one.moments


def _rms(moments: ImageMoments) -> torch.Tensor:
    maps = moments.maps
    return torch.cat([(one.square / one.count + one.mean.square()).sqrt() for one in maps])


# ---- what is measured ----------------------------------------------------------------------------


def _measure(
    cfg: CfgNode,
    model: nn.Module,
    way: Way,
    mosaics: Sequence[Mosaic],
    whole: Sequence[ImageMoments],
    args: argparse.Namespace,
) -> dict:
    seen = cfg.clone()
    seen.INPUT.MIN_SIZE_TEST = round(_scale(cfg) * (way.tile or args.squares * SQUARE))
    detector = Detector(model, seen, tile=way.tile, overlap=args.overlap, statistics=way.statistics)
    _allow_proposals(cfg, model, 1 if way.tile else args.squares**2)
    found, in_empty, alone, both, ratios, seconds = [], 0, 0, 0, [], 0.0
    for mosaic, reference in zip(mosaics, whole, strict=True):
        kept: list[ImageMoments] = []
        altered = _first_pass(cfg, way, mosaic.pixels, kept)
        at_once = way.at_once * round(_scale(cfg) * SQUARE) ** 2 or detector_module._AT_ONCE
        with (
            _by_tile() as seen,
            mock.patch.object(detector_module, "OneImage", altered),
            mock.patch.object(detector_module, "_AT_ONCE", at_once),
        ):
            start = time.process_time()
            found.append(detector(mosaic.pixels))
            seconds += time.process_time() - start
        in_empty += _in_empty(found[-1], mosaic)
        one, two = _seams(*seen[0])
        alone, both = alone + one, both + two
        tiles = seen[0][0]
        if len(reference) and way.tile:
            if not kept:  # a tile's own
                some = np.random.default_rng(0).permutation(len(tiles))[:16]
                cut = [
                    mosaic.pixels[y0:y1, x0:x1] for x0, y0, x1, y1 in map(tiles.__getitem__, some)
                ]
                kept = [_moments(cfg, model, pixels) for pixels in cut]
            expected = _rms(reference)
            usual = expected > 1e-6
            ratios += [(_rms(one)[usual] / expected[usual]) for one in kept]
    measure = _ap(found, mosaics)
    row = {
        "box_AP": f"{measure[0]:.1f}",
        "box_AP50": f"{measure[1]:.1f}",
        "objects_per_empty_square": f"{in_empty / sum(len(m.empty) for m in mosaics):.3f}",
        "found_by_one_tile": f"{alone / max(alone + both, 1):.3f}" if way.tile else "",
        "seconds": f"{seconds / len(mosaics):.1f}",
    }
    if ratios:
        away = torch.cat(ratios).log().abs().exp()
        row["rms_ratio_median"] = f"{away.median():.3f}"
        row["rms_ratio_p95"] = f"{away.quantile(0.95):.3f}"
    return row


def _ap(found: Sequence[list[Detection]], mosaics: Sequence[Mosaic]) -> tuple[float, float]:
    side = len(mosaics[0].pixels)
    boxes = [(k, box) for k, mosaic in enumerate(mosaics, 1) for box in mosaic.boxes]
    truth = indexed(
        {
            "images": [{"id": k + 1, "width": side, "height": side} for k in range(len(mosaics))],
            "categories": [{"id": 1, "name": "nucleus"}],
            "annotations": [
                {"id": n, "image_id": k, "category_id": 1, "bbox": box, "iscrowd": 0,
                 "area": box[2] * box[3]}
                for n, (k, box) in enumerate(boxes, 1)
            ],
        }
    )  # fmt: skip
    results = [
        {**one.as_coco(side, side), "image_id": k, "category_id": 1}
        for k, detections in enumerate(found, 1)
        for one in detections
    ]
    with mock.patch("builtins.print"):
        stats = measured(truth, results, "bbox", max_dets=(1, 100, 100_000)).stats
    return stats[0] * 100, stats[1] * 100


def _in_empty(found: Sequence[Detection], mosaic: Mosaic) -> int:
    """Objects whose middle is in an empty square, away from its neighbours."""
    margin = 16
    middles = [
        ((one.box[0] + one.box[2]) / 2, (one.box[1] + one.box[3]) / 2)
        for one in found
        if one.score >= SCORE
    ]
    return sum(
        margin <= x - left < SQUARE - margin and margin <= y - top < SQUARE - margin
        for x, y in middles
        for left, top in mosaic.empty
    )


def _seams(tiles: Sequence[Box], found: Sequence[Sequence[Detection]]) -> tuple[int, int]:
    """Objects well inside the overlap of two tiles: found by one of the two, and by both."""
    alone = both = 0
    for i, j in combinations(range(len(tiles)), 2):
        x0, y0 = (max(tiles[i][k], tiles[j][k]) for k in (0, 1))
        x1, y1 = (min(tiles[i][k], tiles[j][k]) for k in (2, 3))
        if x1 <= x0 or y1 <= y0:
            continue
        first, second = (
            [
                d.box
                for d in found[k]
                if d.score >= SCORE
                and min(d.box[0] - x0, d.box[1] - y0, x1 - d.box[2], y1 - d.box[3]) >= 8
            ]
            for k in (i, j)
        )
        pairs = 0
        if first and second:
            iou = pairwise_iou(*(Boxes(torch.tensor(boxes)) for boxes in (first, second)))
            pairs = int((iou.max(1).values >= 0.5).sum())
        both += pairs
        alone += len(first) + len(second) - 2 * pairs
    return alone, both


@contextmanager
def _by_tile() -> Iterator[list]:
    """The tiles and what was found in each, as they reach the merging."""
    seen = []

    def watched(tiles, found):
        seen.append((tiles, found))
        return merge(tiles, found)

    with mock.patch.object(detector_module, "merge", watched):
        yield seen


# ---- the rest ------------------------------------------------------------------------------------


def _model(run: Path) -> tuple[CfgNode, nn.Module]:
    """A trained detector without masks: those of a whole mosaic would fill the memory."""
    opts = ["MODEL.WEIGHTS", str(run / "model_final.pth"), "MODEL.DEVICE", "cpu"]
    opts += ["MODEL.MASK_ON", False, "MODEL.KEYPOINT_ON", False, "INPUT.TILE", 0]
    opts += ["TEST.DETECTIONS_PER_IMAGE", 10_000, "INPUT.MAX_SIZE_TEST", 100_000]
    cfg = load_config(run / "config.yaml", opts)
    return cfg, deployable(load_model(cfg)[0])


def _allow_proposals(cfg: CfgNode, model: nn.Module, squares: int) -> None:
    """As many of a whole mosaic as of its squares together."""
    rpn = model.proposal_generator
    rpn.pre_nms_topk = {False: squares * cfg.MODEL.RPN.PRE_NMS_TOPK_TEST}
    rpn.post_nms_topk = {False: squares * cfg.MODEL.RPN.POST_NMS_TOPK_TEST}


def _learned_eps(cfg: CfgNode) -> bool:
    family = cfg.MODEL.RESNETS.NORM.split("+")[0]
    return cfg.MODEL.NORMDET.get(family, {}).get("LEARNED_EPS") == "always"


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="folders of trained detectors")
    add("--data", type=Path, required=True, help="folder of val.json and images/")
    add("--out", type=Path, required=True, help="the table")
    add("--mosaics", type=int, default=2, help="how many")
    add("--squares", type=int, default=8, help="along a mosaic's side")
    add("--filled", type=float, default=0.6, help="share of squares that show an image")
    add("--tile", type=int, default=256)
    add("--overlap", type=int, default=64)
    add("--ways", nargs="*", default=(), help="some of them")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
