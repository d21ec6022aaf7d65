#!/usr/bin/env python3
"""Examine one model on several folders of images, and write its stages as a table.

python results/scripts/doctor_examples.py --weights resnet50-imagenet.pth \
    --out results/doctor.csv --set photographs=coco/val2017 \
    --set "blood cells=bccd/JPEGImages" --set nuclei=nuclei/images

The thresholds of `normdet doctor` and the numbers its help names are read off this table.
"""

import argparse
import csv
import datetime
import sys
from importlib.metadata import version
from pathlib import Path

from normdet.config import load_config
from normdet.data.images import Images, find_images, sample
from normdet.files.atomic import atomic_file
from normdet.lab.doctor.command import body
from normdet.lab.doctor.examination import examine
from normdet.lab.doctor.rows import BATCHES
from normdet.version import __version__
from normdet.weights import load_model

COLUMNS = (
    "images", "count", "short_side", "stage", "distance", "level", "channels_off", "mean_shift",
    "variance_ratio", *(f"noise_{size}" for size in BATCHES), "clamped", "dead", "weights",
    "command", "versions", "date",
)  # fmt: skip


def main() -> None:
    args = _parse()
    rows = []
    for size in args.sizes:
        cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", size])
        cfg.MODEL.WEIGHTS = str(args.weights)
        model, _ = load_model(cfg)
        for name, folder in args.sets:
            files = sample(find_images([folder]), args.count)
            found = examine(
                model, Images(files, cfg, model.backbone.size_divisibility), forward=body(model)
            )
            rows += [_row(name, found.images, size, stage, args) for stage in found.stages]
            print(name, size, *(f"{row.name} {row.distance:.2f}" for row in found.stages))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(args.out) as file:
        lines = csv.DictWriter(_Text(file), COLUMNS, lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)


def _row(name: str, count: int, size: int, stage, args: argparse.Namespace) -> dict:
    return {
        "images": name, "count": count, "short_side": size, "stage": stage.name,
        "distance": f"{stage.distance:.3f}", "level": stage.level,
        "channels_off": f"{stage.beyond:.3f}", "mean_shift": f"{stage.shift:.3f}",
        "variance_ratio": f"{stage.variance_ratio:.3f}",
        **{f"noise_{n}": f"{value:.3f}" for n, value in stage.noise.items() if n in BATCHES},
        "clamped": f"{stage.clamped:.3f}", "dead": f"{stage.dead:.4f}",
        "weights": args.weights.name,
        "command": "python results/scripts/doctor_examples.py " + " ".join(_told(sys.argv[1:])),
        "versions": f"normdet {__version__}, torch {version('torch')}",
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def _told(words: list[str]) -> list[str]:
    """The arguments, without the folders of this machine."""
    return [word if "/" not in word else _shortened(word) for word in words]


def _shortened(word: str) -> str:
    name, equals, path = word.rpartition("=")
    parts = Path(path).parts
    kept = "/".join(parts[-2:]) if Path(path).is_absolute() else path
    return f"'{name}{equals}{kept}'" if " " in word else f"{name}{equals}{kept}"


class _Text:
    """A text writer on top of a binary file."""

    def __init__(self, file):
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode())


def _set(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} should read NAME=FOLDER")
    return name, folder


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="trained with BN, its statistics kept")
    add("--config-file", default="coco/mask_rcnn_R_50_FPN_1x.yaml", help="the model")
    add("--set", dest="sets", type=_set, action="append", required=True, metavar="NAME=FOLDER")
    add("--count", type=int, default=32, help="images of each set, evenly spaced")
    add("--sizes", type=int, nargs="+", default=[224], help="short sides of the images")
    add("--out", type=Path, required=True, help="the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
