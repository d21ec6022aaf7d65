#!/usr/bin/env python3
"""Train the demo's detector under every option and write what each reaches as a table.

python tools/quickstart_norms.py --out results/quickstart_norms.csv [--options BRN,BIN] [--jobs 2]
    [DATASETS.ROOT my/data DATASETS.TRAIN "('coco:train.json:images',)" ...]

Each run is one `normdet train`, resumable: the same command goes on where it was stopped. EvalNorm
is not trained but read out of the BN run's checkpoint, as `normdet convert --to EvalNorm` makes it.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from normdet.version import __version__

# What each option is there to show; the demo's own pair first.
OPTIONS = (
    "GN", "FRN+TLU", "FRN", "GN+WS", "FRN+TLU+WS", "LN", "IN", "BN", "EvalNorm", "BRN", "BIN",
    "SwitchNorm", "InPlaceABN", "MeanOnlyBN+WN", "GN+WN", "BN+SpectralNorm", "GN+AWS", "Fixup",
    "FrozenBN",
)  # fmt: skip
# Schedules and rates that belong to an option, as shares of the run.
_FITTED = {
    "BRN": lambda steps: [
        "MODEL.NORMDET.BRN.MOMENTUM", 0.1,
        "MODEL.NORMDET.BRN.WARMUP", steps // 8, "MODEL.NORMDET.BRN.OPEN", steps // 3,
    ],
}  # fmt: skip
_NOTES = {
    "FrozenBN": "from random weights its statistics are those of no data: the identity",
    "EvalNorm": "the BN row's checkpoint, its blend learned without labels",
}
_COLUMNS = (
    "option", "images_per_batch", "seed", "iterations", "box_AP", "box_AP50", "mask_AP",
    "mask_AP50", "note", "versions", "machine", "date",
)  # fmt: skip


def main() -> None:
    args = _parse()
    cells = [(option, seed) for option in args.options for seed in args.seeds]
    # EvalNorm reads the BN run of its seed, which must be there by then.
    trained = [cell for cell in cells if cell[0] != "EvalNorm"]
    read_out = [cell for cell in cells if cell[0] == "EvalNorm"]
    done: dict[tuple[str, int], dict] = {}
    for stage in (trained, read_out):
        with ThreadPoolExecutor(args.jobs) as pool:
            for cell, row in zip(
                stage, pool.map(lambda cell: _run(*cell, args), stage), strict=True
            ):
                done[cell] = row
                _write(args.out, [done[cell] for cell in cells if cell in done])
                print(
                    f"{cell[0]}, seed {cell[1]}: box AP {row['box_AP']}, {row['note']}", flush=True
                )


def _run(option: str, seed: int, args: argparse.Namespace) -> dict:
    folder = args.runs / f"{option.replace('+', '_')}_{seed}"
    results = folder / "results.json"
    opts = ["OUTPUT_DIR", folder, "SEED", seed, "SOLVER.MAX_ITER", args.iterations]
    opts += [
        "TEST.EVAL_PERIOD",
        args.iterations,
        *_FITTED.get(option, lambda _: [])(args.iterations),
    ]
    opts += args.opts
    note = _NOTES.get(option, "")
    if not results.exists():
        if option == "EvalNorm":
            error = _read_out_eval_norm(args.config, folder, args.runs / f"BN_{seed}", opts)
        else:
            error = _normdet(
                "train", "--config-file", args.config, "--norm", option, "--resume", *opts
            )
        note = "; ".join(filter(None, (note, error)))
    measured = json.loads(results.read_text()) if results.exists() else {}
    names = {"box_AP": ("bbox", "AP"), "box_AP50": ("bbox", "AP50")}
    names |= {"mask_AP": ("segm", "AP"), "mask_AP50": ("segm", "AP50")}
    values = {column: _number(measured, *where) for column, where in names.items()}
    return {
        "option": option, "images_per_batch": 2, "seed": seed, "iterations": args.iterations,
        **values, "note": note,
        "versions": f"normdet {__version__}, torch {version('torch')}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.jobs} runs at once",
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def _number(measured: dict, task: str, metric: str) -> str:
    value = measured.get(task, {}).get(metric)
    return "" if value is None else f"{value:.1f}"


def _read_out_eval_norm(config: str, folder: Path, bn: Path, opts: list) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    shared = ["--config-file", config]
    error = _normdet(
        "convert", bn / "model_final.pth", "--to", "EvalNorm", *shared, "--norm", "BN",
        "--out", folder / "fitted.pth", *opts,
    )  # fmt: skip
    weights = ["MODEL.WEIGHTS", folder / "fitted.pth"]
    return error or _normdet("eval", *shared, "--norm", "EvalNorm", *opts, *weights)


def _normdet(*words) -> str:
    """Run the command; its error's last line, or nothing."""
    env = {"OMP_NUM_THREADS": "1", **os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-m", "normdet", *map(str, words)], env=env, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the table")
    add("--runs", type=Path, default=Path("output/quickstart_norms"), help="where runs are kept")
    add("--config", default="quickstart/base.yaml", help="the detector and its schedule")
    add("--options", type=lambda text: text.split(","), default=OPTIONS, help="A,B,...")
    add("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[1], help="1,2,...")
    add("--iterations", type=int, default=400, help="of each run")
    add("--jobs", type=int, default=1, help="runs at once")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and their values, as of the data")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
