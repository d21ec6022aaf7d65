#!/usr/bin/env python3
"""Measure what `normdet convert` keeps, as rows of results/conversion.csv.

    python results/scripts/conversion_tables.py agreement --data DATA
    python results/scripts/conversion_tables.py warm_start --data DATA
    python results/scripts/conversion_tables.py detector --data DATA
    python results/scripts/conversion_tables.py finetune --data DATA --dataset nuclei

The first on an ImageNet ResNet-50 and photographs; the second on the same as a function of images
and steps; the third on a BN detector of nuclei, converted without labels; the fourth AP against
iterations of fine-tuning from each kind of start. DATA holds `weights/resnet50-imagenet.pth`,
`coco/`, `nuclei/` and `bccd/`. Rows that are there are not measured again, so a stopped command
goes on. Seeds choose the images that are fitted to, the crops, and in training everything. What is
measured on was never fitted to.
"""

import argparse
import csv
import datetime
import fcntl
import itertools
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from normdet.config import load_config
from normdet.convert import Settings, convert
from normdet.convert.crops import centre_crops
from normdet.convert.distill import Schedule
from normdet.convert.measure import compare
from normdet.convert.run import Conversion, classifier_of
from normdet.convert.views import Views
from normdet.data import image_files, register_datasets
from normdet.data.images import Images, find_images
from normdet.engine import Trainer

COLUMNS = "model dataset target method seed metric value note versions date".split()
SEEDS = (1, 2, 3)
IMAGENET = ["INPUT.MIN_SIZE_TEST", "256", "MODEL.DEVICE", "cpu"]
PHOTOGRAPHS = ("FRN+TLU", "RMSGN", "GN", "LN", "GN+WS", "SwitchNorm")
SOFT = ("FRN+TLU", "RMSGN", "GN")
KEEP = 0.9
# Images and steps of a warm start; the data have 100 photographs to fit to.
IMAGES, STEPS = (16, 64, 100), (60, 240)
# Of fine-tuning.
RATE = 0.005


class Table:
    """The CSV, to which several commands may add at once."""

    def __init__(self, path: Path):
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def rows(self) -> list[dict]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def has(self, **key) -> bool:
        key = {name: str(value) for name, value in key.items()}
        return any(all(row[k] == v for k, v in key.items()) for row in self.rows())

    def add(self, found: dict[str, float], note: str = "", **key) -> None:
        about = {
            "note": note, "versions": f"torch {version('torch')}",
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        with self.path.open("a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            writer = csv.DictWriter(file, COLUMNS)
            if not file.tell():
                writer.writeheader()
            for metric, value in found.items():
                writer.writerow({**key, "metric": metric, "value": f"{value:.4f}", **about})
        print(key, {k: round(v, 3) for k, v in found.items()}, flush=True)


def copied(done: Conversion) -> torch.nn.Module:
    """The converted network with gamma and beta as they were: what loading BN weights gives."""
    naive = Trainer.build_model(done.cfg).eval()
    theirs, ours = done.original.state_dict(), naive.state_dict()
    same = {k: v for k, v in theirs.items() if k in ours and ours[k].shape == v.shape}
    naive.load_state_dict(same, strict=False)
    return naive


def read(files: list[Path], cfg, seed: int | None = None, count: int = 64) -> list[torch.Tensor]:
    """The images, or `count` that a seed draws."""
    if seed is not None:
        chosen = np.random.default_rng(seed).permutation(len(files))[:count]
        files = [files[k] for k in sorted(chosen)]
    return [batch[0]["image"] for batch in Images(files, cfg, 1)]


def imagenet_cfg(args: argparse.Namespace):
    weights = ["MODEL.WEIGHTS", str(args.data / "weights/resnet50-imagenet.pth"), *IMAGENET]
    return load_config("compare/nuclei_pretrained.yaml", weights, "FrozenBN", ["backbone"])


def agreement(args: argparse.Namespace, table: Table) -> None:
    """Features and first names on photographs."""
    cfg = imagenet_cfg(args)
    train, val = (find_images([args.data / "coco" / name]) for name in ("train2017", "val2017"))
    check = read(val, cfg)
    key = {"model": "resnet50-imagenet", "dataset": "coco val2017, 100 photographs"}
    for target in PHOTOGRAPHS:
        place = {**key, "target": target}
        if not table.has(**place, method="closed form"):
            done = convert(cfg, Settings(target, "closed"), (), check=check)
            views = Views(done.original, done.report.matched), Views(copied(done), done.loaded)
            classifier = classifier_of(cfg, done.original)
            found = compare(*views, centre_crops(check, 224), classifier)
            table.add(found, **place, method="copy", seed="")
            table.add(done.achieved["closed"], **place, method="closed form", seed="")
    # The cheap rung first. SwitchNorm starts nearly as the original.
    strict = [(target, 0.0) for target in PHOTOGRAPHS if target != "SwitchNorm"]
    soft = [(target, KEEP) for target in SOFT]
    for rung, seed, target, keep in (
        (rung, seed, *which)
        for rung in ("calibrated", "distilled")
        for seed in args.seeds
        for which in soft + strict
    ):
        method = f"{rung}, keep {keep}" if keep else rung
        place = {**key, "target": target, "method": method, "seed": seed}
        if table.has(**place):
            continue
        settings = photograph_settings(target, rung, keep, seed, args.steps)
        done = convert(
            cfg, settings, read(train, cfg, seed), check=check,
            state_file=args.runs / f"agreement_{target}_{keep}_{seed}.pth",
        )  # fmt: skip
        note = "64 photographs of coco train2017"
        if rung == "distilled":
            note += f"; {args.steps} steps of 4 at 224, all weights"
            done.save(weights_file(args, target, keep, seed))
        table.add(done.achieved[rung], note, **place)


def photograph_settings(target: str, rung: str, keep: float, seed: int, steps: int) -> Settings:
    schedule = Schedule(steps, 5e-5, all_weights=True)
    return Settings(target, rung, keep=keep, batch=4, seed=seed, schedule=schedule)


def warm_start(args: argparse.Namespace, table: Table) -> None:
    """First names kept by FRN+TLU as a function of images and steps; one seed."""
    cfg = imagenet_cfg(args)
    train, val = (find_images([args.data / "coco" / name]) for name in ("train2017", "val2017"))
    check, seed = read(val, cfg), args.seeds[0]
    key = {"model": "resnet50-imagenet", "dataset": "coco val2017, 100 photographs",
           "target": "FRN+TLU", "seed": seed}  # fmt: skip
    # The cheap cells first.
    for steps, keep, images in itertools.product(STEPS, (0.0, KEEP), IMAGES):
        method = f"distilled, {images} images, {steps} steps" + (f", keep {keep}" if keep else "")
        if table.has(**key, method=method):
            continue
        done = convert(
            cfg, photograph_settings("FRN+TLU", "distilled", keep, seed, steps),
            read(train, cfg, seed, images), check=check,
            state_file=args.runs / f"warm_{images}_{steps}_{keep}_{seed}.pth",
        )  # fmt: skip
        note = f"{images} photographs of coco train2017; {steps} steps of 4 at 224, all weights"
        table.add(done.achieved["distilled"], note, **key, method=method)


def weights_file(args: argparse.Namespace, target: str, keep: float, seed: int) -> Path:
    return args.runs / f"resnet50_{target.replace('+', '_')}_{keep}_{seed}.pth"


def detector(args: argparse.Namespace, table: Table) -> None:
    """AP of a detector that was trained with BN, kept without labels."""
    for seed in args.seeds:
        folder = args.runs / "bn" / str(seed)
        weights = folder / "model_final.pth"
        if not weights.exists():
            run("train", "--config-file", "compare/nuclei.yaml", "--norm", "BN", "--resume",
                "OUTPUT_DIR", folder, "SEED", seed, "DATASETS.ROOT", args.data / "nuclei",
                "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 300, "SOLVER.WARMUP_ITERS", 50,
                "TEST.EVAL_PERIOD", 0, "MODEL.DEVICE", "cpu")  # fmt: skip
        cfg = load_config(folder / "config.yaml", ["MODEL.WEIGHTS", str(weights)])
        register_datasets(cfg)
        images = read(image_files(cfg.DATASETS.TRAIN[0], cfg.DATASETS.ROOT), cfg, seed)
        key = {"model": "R18-FPN, BN at 4 images", "dataset": "nuclei", "seed": seed}
        for target, keep in [(t, k) for t in SOFT for k in (0.0, KEEP)]:
            kept = f", keep {keep}" if keep else ""
            place = {**key, "target": target}
            if table.has(**place, method=f"distilled{kept}"):
                continue
            settings = Settings(
                target, "calibrated", keep=keep, size=256, crop=256, batch=4, seed=seed
            )
            done = convert(cfg, settings, images)
            if not table.has(**key, target="BN", method="original"):
                table.add(ap(cfg, done.original), **key, target="BN", method="original")
            if not keep:
                table.add(ap(cfg, copied(done)), **place, method="copy")
                closed = convert(cfg, Settings(target, "closed", size=256), ())
                table.add(ap(cfg, closed.converted), **place, method="closed form")
            table.add(ap(cfg, done.converted), **place, method=f"calibrated{kept}")
            settings.rung = "distilled"
            settings.schedule = Schedule(args.steps, 1e-4, all_weights=True)
            done = convert(
                cfg, settings, images, state_file=args.runs / f"nuclei_{target}_{keep}_{seed}.pth"
            )
            note = f"64 train images; {args.steps} steps of 4 at 256, all weights"
            table.add(ap(cfg, done.converted), note, **place, method=f"distilled{kept}")


def ap(cfg, model: torch.nn.Module) -> dict[str, float]:
    found = Trainer.test(cfg, model)
    names = {"bbox": "box", "segm": "mask"}
    return {f"{names[task]} {m}": found[task][m] for task in found for m in ("AP", "AP50")}


# The start of each arm of the fine-tuning. All but the first have an FRN+TLU backbone.
ARMS = ("FrozenBN", "copy", "closed form", "distilled", f"distilled, keep {KEEP}", "annealed",
        "random weights")  # fmt: skip


def finetune(args: argparse.Namespace, table: Table) -> None:
    """AP against iterations, from ImageNet weights in each form."""
    cfg = imagenet_cfg(args)
    name = {"nuclei": "nuclei", "bccd": "blood_cells"}[args.dataset]
    files = {}
    for rung in ("closed", "annealed"):
        files[rung] = args.runs / f"resnet50_FRN_TLU_{rung}.pth"
        if not files[rung].exists():
            convert(cfg, Settings("FRN+TLU", rung), ()).save(files[rung])
    for seed in args.seeds:
        starts = {
            "FrozenBN": (cfg.MODEL.WEIGHTS, []), "copy": (cfg.MODEL.WEIGHTS, []),
            "closed form": (files["closed"], []),
            "distilled": (weights_file(args, "FRN+TLU", 0.0, seed), []),
            f"distilled, keep {KEEP}": (
                weights_file(args, "FRN+TLU", KEEP, seed),
                ["MODEL.NORMDET.FRN.LEARNED_EPS", "always"],
            ),
            "annealed": (files["annealed"], []), "random weights": ("", []),
        }  # fmt: skip
        for arm in ARMS:
            weights, opts = starts[arm]
            norm = "FrozenBN" if arm == "FrozenBN" else "FRN+TLU"
            key = {"model": "R50-FPN", "dataset": args.dataset, "target": norm, "method": arm}
            if table.has(**key, seed=seed):
                continue
            if weights and not Path(weights).exists():
                print(f"{arm}, seed {seed}: {weights} is not there yet: run `agreement` first")
                continue
            folder = args.runs / f"finetune_{args.dataset}" / f"{arm.replace(' ', '_')}_{seed}"
            run("train", "--config-file", f"compare/{name}_pretrained.yaml", "--norm", norm,
                "--norm-parts", "backbone", "--resume", "OUTPUT_DIR", folder, "SEED", seed,
                "MODEL.DEVICE", "cpu",
                "DATASETS.ROOT", args.data / args.dataset, "MODEL.WEIGHTS", weights,
                "SOLVER.BASE_LR", RATE,
                "SOLVER.MAX_ITER", args.iterations, "SOLVER.WARMUP_ITERS", args.iterations // 5,
                "SOLVER.CHECKPOINT_PERIOD", 100000, "TEST.EVAL_PERIOD", args.iterations // 3,
                "MODEL.NORMDET.ANNEAL_UNTIL", 0.5,
                "INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", 192, *opts)  # fmt: skip
            found = {}
            for line in (folder / "metrics.json").read_text().splitlines():
                entry = json.loads(line)
                done = min(entry["iteration"] + 1, args.iterations)
                for task, kind in (("bbox", "box"), ("segm", "mask")):
                    if f"{task}/AP" in entry:
                        found[f"{kind} AP @{done}"] = entry[f"{task}/AP"]
            note = f"{args.iterations} iterations of 2 images at 192 pixels, FREEZE_AT 0"
            table.add(found, note, **key, seed=seed)
            for checkpoint in folder.glob("*.pth"):
                checkpoint.unlink()


def run(*words) -> None:
    subprocess.run([sys.executable, "-m", "normdet", *map(str, words)], check=True)


TABLES = {
    "agreement": agreement, "warm_start": warm_start, "detector": detector, "finetune": finetune,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("table", choices=list(TABLES))
    add("--data", type=Path, required=True, help="the folder of images and weights")
    add("--dataset", choices=["nuclei", "bccd"], default="nuclei", help="to fine-tune on")
    add("--out", type=Path, default=Path("results/conversion.csv"), help="the table")
    add("--runs", type=Path, default=Path("output/conversion"), help="where runs are kept")
    add("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=SEEDS)
    add("--steps", type=int, default=60, help="of distillation")
    add("--iterations", type=int, default=120, help="of fine-tuning")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    TABLES[args.table](args, Table(args.out))


if __name__ == "__main__":
    main()
