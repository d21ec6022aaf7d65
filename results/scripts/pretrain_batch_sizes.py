#!/usr/bin/env python3
"""Accuracy against batch size on crops of real images: the GN and FRN papers' figure in small.

    python results/scripts/pretrain_batch_sizes.py --data DATA --runs output/pretrain

DATA holds `bccd/` and `nuclei/`. The crops are made once. A run is one `normdet pretrain`: the
command, given again, goes on where it was stopped, and writes what is finished into the table.
What is cut and trained, results/PROTOCOL.md says.
"""

import argparse
import csv
import datetime
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from normdet.data.coco import load_coco
from normdet.data.voc import load_voc
from normdet.files.atomic import atomic_file

COLUMNS = "norm batch seed top-1 epochs step_s versions date".split()
NORMS = ("BN", "GN", "GN+WS", "FRN+TLU")
BATCHES = (2, 32, 8, 4)
SIDE = 64
MARGIN = 1.25  # of a box's longer side
# At most so many crops of a class, evenly spaced.
MOST = {"train": 80, "val": 50}

Box = tuple[float, float, float, float]


def square(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The square about a box `(x, y, w, h)`, moved into the image."""
    x, y, w, h = box
    side = round(min(max(w, h) * MARGIN, width, height))
    left = round(min(max(x + w / 2 - side / 2, 0), width - side))
    top = round(min(max(y + h / 2 - side / 2, 0), height - side))
    return left, top, left + side, top + side


def background(boxes: list[Box], width: int, height: int, seed: int) -> Box | None:
    """A box of the median object's size that overlaps no object: the first such of 50 draws."""
    rng = np.random.default_rng(seed)
    w, h = (float(np.median([box[k] for box in boxes])) for k in (2, 3))
    for _ in range(50):
        x, y = rng.uniform(0, max(width - w, 1)), rng.uniform(0, max(height - h, 1))
        if all(x + w < a or a + c < x or y + h < b or b + d < y for a, b, c, d in boxes):
            return x, y, w, h
    return None


def found(dataset, with_background: bool) -> Iterator[tuple[str, str, Box]]:
    """File, class and box of every crop of a data set."""
    for number, record in enumerate(dataset.records):
        entries = [a for a in record["annotations"] if not a.get("iscrowd")]
        boxes = [_xywh(a) for a in entries]
        for entry, box in zip(entries, boxes, strict=True):
            yield record["file_name"], dataset.classes[entry["category_id"]], box
        if with_background and boxes:
            free = background(boxes, record["width"], record["height"], number)
            if free:
                yield record["file_name"], "background", free


def _xywh(annotation: dict) -> Box:
    x0, y0, a, b = annotation["bbox"]
    corners = annotation["bbox_mode"].name == "XYXY_ABS"
    return (x0, y0, a - x0, b - y0) if corners else (x0, y0, a, b)


def cut(data: Path, folder: Path) -> None:
    """Write the crops of both data sets as `folder/train|val/CLASS/*.png`."""
    sources = {
        "train": [load_coco(data / "nuclei/train.json", data / "nuclei/images"),
                  load_voc(data / "bccd", "train")],
        "val": [load_coco(data / "nuclei/val.json", data / "nuclei/images"),
                load_voc(data / "bccd", "test")],
    }  # fmt: skip
    for part, (nuclei, cells) in sources.items():
        if (folder / part / "done").exists():
            continue
        by_class: dict[str, list] = {}
        for file, label, box in itertools.chain(found(nuclei, True), found(cells, False)):
            by_class.setdefault(label, []).append((file, box))
        for label, crops in by_class.items():
            count = min(MOST[part], len(crops))
            place = folder / part / label
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                file, box = crops[index * len(crops) // count]
                image = Image.open(file).convert("RGB")
                crop = image.crop(square(box, *image.size)).resize((SIDE, SIDE))
                crop.save(place / f"{index:04}.png")
            print(f"{part} {label}: {count} of {len(crops)}", flush=True)
        (folder / part / "done").touch()


def folder_of(runs: Path, norm: str, batch: int, seed: int) -> Path:
    return runs / f"{norm}_{batch}_{seed}"


def train(args: argparse.Namespace, norm: str, batch: int, seed: int) -> None:
    """One run, if it is not finished."""
    out = folder_of(args.runs, norm, batch, seed)
    if (out / "results.json").is_file():
        return
    crops = sum(1 for _ in (args.runs / "crops/train").glob("*/*.png"))
    steps = round(args.epochs * crops / batch)
    words = [
        "--config-file", "pretrain/base.yaml", "--norm", norm, "--depth", 18,
        "--data", args.runs / "crops", "--out", out,
        "SEED", seed, "SOLVER.IMS_PER_BATCH", batch, "SOLVER.BASE_LR", args.rate * batch / 32,
        "SOLVER.MAX_ITER", steps, "SOLVER.WARMUP_ITERS", round(steps / 10),
        "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WEIGHT_DECAY_NORM", 0.0,
        "SOLVER.CHECKPOINT_PERIOD", steps, "TEST.EVAL_PERIOD", 0, "PRETRAIN.SIZE", SIDE,
        "PRETRAIN.SMALLEST_CROP", 0.5, "PRETRAIN.ZERO_LAST_GAMMA", False,
        "INPUT.RANDOM_D4", True, "DATALOADER.NUM_WORKERS", 0, *args.opts,
    ]  # fmt: skip
    command = [sys.executable, "-m", "normdet", "pretrain", "--resume", *map(str, words)]
    if subprocess.run(command, check=False).returncode:
        print(f"{out} failed", flush=True)


def write(args: argparse.Namespace) -> None:
    """The table of all finished runs, also those of another command on the same folder."""
    rows = []
    for batch, seed, norm in itertools.product(sorted(BATCHES), range(1, 100), NORMS):
        out = folder_of(args.runs, norm, batch, seed)
        if not (out / "results.json").is_file():
            continue
        result = json.loads((out / "results.json").read_text())["classification"]
        lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
        times = [line["time"] for line in lines if "time" in line]
        made = datetime.date.fromtimestamp((out / "results.json").stat().st_mtime)
        rows.append({
            "norm": norm, "batch": batch, "seed": seed,
            "top-1": f"{result['top-1']:.2f}", "epochs": f"{args.epochs:g}",
            "step_s": f"{np.median(times):.3f}" if times else "",
            "versions": f"torch {version('torch')}", "date": made.isoformat(),
        })  # fmt: skip
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(args.out) as file:
        file.write(text.getvalue().encode())


def _texts(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder of bccd/ and nuclei/")
    add("--runs", type=Path, default=Path("output/pretrain"), help="where crops and runs are kept")
    add("--out", type=Path, default=Path("results/pretrain.csv"), help="the table")
    add("--norms", type=_texts, default=NORMS, metavar="A,B")
    add("--batches", type=_numbers, default=BATCHES, metavar="N,M")
    add("--seeds", type=_numbers, default=(1, 2, 3), metavar="N,M")
    add("--epochs", type=float, default=3)
    add("--rate", type=float, default=0.05, help="at 32 images; falls with them (0.05)")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and their values")
    args = parser.parse_intermixed_args()
    cut(args.data, args.runs / "crops")
    # The contrast that is tested first: all seeds of one batch size, then those of the next.
    for batch, seed, norm in itertools.product(args.batches, args.seeds, args.norms):
        train(args, norm, batch, seed)
        write(args)


if __name__ == "__main__":
    main()
