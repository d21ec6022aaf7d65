#!/usr/bin/env python3
"""Gather finished comparisons as results/medical.csv, and draw what their models predict.

    python results/scripts/medical_table.py output/compare/nuclei output/compare/... ...

Each folder is one of `normdet compare`; results/PROTOCOL.md has the commands. The pictures are
drawn from what the runs kept, without their weights.
"""

import argparse
import csv
from pathlib import Path

from detectron2.data import DatasetCatalog

from normdet.config import load_config
from normdet.data import register_datasets
from normdet.lab.compare.runs import DONE, TEST, read_table
from normdet.lab.report.figures import draw_scenes
from normdet.lab.report.runs import predictions, scene

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "results"
COLUMNS = (
    "dataset", "init", "norm", "batch_size", "seed", "status", "box_AP", "box_AP50", "mask_AP",
    "mask_AP50", "lr", "step_s", "train_s", "wall_s", "memory_mb", "iterations", "images_seen",
    "config_hash", "commit", "versions", "machine", "date",
)  # fmt: skip
# The arms of the pictures, all trained from pretrained weights.
SHOWN = ("FrozenBN as is", "GN, backbone", "FRN+TLU, backbone")
SCENES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="of comparisons")
    args = parser.parse_args()
    runs = [run for folder in args.folders for run in read_table(folder / "runs.csv")]
    runs = [run for run in runs if run.role == TEST]
    with (RESULTS / "medical.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for run in runs:
            init = "random" if run.init == "random" else "pretrained"
            writer.writerow(run.to_row() | {"init": init, "dataset": run.dataset.split()[0]})
    for folder in args.folders:
        draw(folder)


def draw(folder: Path) -> None:
    """Predictions of the first seed at one image a step, on evenly spaced test images."""
    runs = {
        run.norm: folder / "cells" / run.name
        for run in read_table(folder / "runs.csv")
        if run.role == TEST and run.status == DONE
        and (run.batch_size, run.seed) == (1, 1) and run.init != "random"
    }  # fmt: skip
    runs = {norm: runs[norm] for norm in SHOWN if norm in runs}
    # The tables in results/ end their lines with a line feed alone.
    if len(runs) < len(SHOWN) or not all((run / "config.yaml").exists() for run in runs.values()):
        return
    cfg = load_config(next(iter(runs.values())) / "config.yaml", [])
    register_datasets(cfg)
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    sizes = [(record["height"], record["width"]) for record in records]
    records = [r for r, s in zip(records, sizes, strict=True) if s == max(sizes, key=sizes.count)]
    chosen = [records[(2 * k + 1) * len(records) // (2 * SCENES)] for k in range(SCENES)]
    predicted = {norm: predictions(run) for norm, run in runs.items()}
    scenes = [scene(record, predicted) for record in chosen]
    name = Path(cfg.DATASETS.ROOT).name
    draw_scenes(scenes, {norm: norm for norm in runs}, RESULTS / f"medical_{name}.png")
    about = {norm: run.name for norm, run in runs.items()}
    print(f"medical_{name}.png: {about}, images {[Path(r['file_name']).name for r in chosen]}")


if __name__ == "__main__":
    main()
