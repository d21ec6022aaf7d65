#!/usr/bin/env python3
"""Train the quickstart's detector under every option and write what each reaches as a table.

python results/scripts/quickstart_norms.py --out results/quickstart_norms.csv \
    [--options BRN,BIN] [--jobs 2] \
    [DATASETS.ROOT my/data DATASETS.TRAIN "('coco:train.json:images',)" ...]

Each run is a cell of `normdet compare`'s scheduler: the same command goes on where it was stopped.
What compare does not know stands here: schedules fitted to an option, and EvalNorm, which is not
trained but read out of the BN run's checkpoint, as `normdet convert --to EvalNorm` makes it. For
norms on your own data, with intervals, use `normdet compare`.
"""

import argparse
import csv
import shlex
import sys
from pathlib import Path

from normdet.lab.compare.cell import Task
from normdet.lab.compare.local import LocalPool, slots
from normdet.lab.compare.runs import CRASHED, DONE, Run, read_run

# What each option is there to show; the demo's own pair first.
OPTIONS = (
    "GN", "FRN+TLU", "FRN", "GN+WS", "FRN+TLU+WS", "LN", "IN", "BN", "EvalNorm", "BRN", "BIN",
    "SwitchNorm", "RMSGN", "AN", "AttentiveBN", "EvoNormS0", "EvoNormB0", "MABN+WC",
    "GN+SWS", "InPlaceABN", "MeanOnlyBN+WN", "GN+WN", "BN+SpectralNorm", "GN+AWS", "Fixup",
    "FrozenBN",
)  # fmt: skip
# Schedules and rates of single options, as shares of the run.
_FITTED = {
    "BRN": lambda steps: [
        "MODEL.NORMDET.BRN.MOMENTUM", 0.1,
        "MODEL.NORMDET.BRN.WARMUP", steps // 8, "MODEL.NORMDET.BRN.OPEN", steps // 3,
    ],
    "MABN+WC": lambda steps: [
        "MODEL.NORMDET.MABN.WARMUP", steps // 8, "MODEL.NORMDET.MABN.OPEN", steps // 3,
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
    # EvalNorm reads the BN run of its seed, so that run comes first.
    trained = [cell for cell in cells if cell[0] != "EvalNorm"]
    read_out = [cell for cell in cells if cell[0] == "EvalNorm"]
    done: dict[tuple[str, int], dict] = {}
    pool = LocalPool(slots(args.jobs, [], 1, 1))
    try:
        for stage in (trained, read_out):
            for cell, outcome in _outcomes(stage, pool, args):
                done[cell] = _row(*cell, outcome, args)
                _write(args.out, [done[cell] for cell in cells if cell in done])
                box, note = done[cell]["box_AP"], done[cell]["note"]
                print(f"{cell[0]}, seed {cell[1]}: box AP {box}, {note}", flush=True)
    finally:
        pool.close()


def _outcomes(stage: list[tuple[str, int]], pool: LocalPool, args: argparse.Namespace):
    """Yield each cell with its row when it ends; finished cells come first."""
    tasks = {_task(*cell, args): cell for cell in stage}
    for task, cell in tasks.items():
        run = read_run(task.result_file)
        if run is None or run.status == CRASHED:
            pool.submit(task)
        else:
            yield cell, run
    while pool.busy:
        for task, run in pool.wait(1.0):
            yield tasks[task], run


def _task(option: str, seed: int, args: argparse.Namespace) -> Task:
    folder = args.runs / f"{option.replace('+', '_')}_{seed}"
    opts = ["OUTPUT_DIR", folder, "SEED", seed, "SOLVER.MAX_ITER", args.iterations]
    opts += ["TEST.EVAL_PERIOD", args.iterations]
    opts += [*_FITTED.get(option, lambda _: [])(args.iterations), *args.opts]
    shared = ["--config-file", args.config]
    if option == "EvalNorm":
        fitted, bn = folder / "fitted.pth", args.runs / f"BN_{seed}" / "model_final.pth"
        convert = _normdet("convert", bn, "--to", option, *shared, "--norm", "BN",
                           "--out", fitted, *opts)  # fmt: skip
        read = _normdet("eval", *shared, "--norm", option, *opts, "MODEL.WEIGHTS", fitted)
        command = ["sh", "-c", f"{shlex.join(convert)} && {shlex.join(read)}"]
    else:
        command = _normdet("train", *shared, "--norm", option, "--resume", *opts)
    run = Run(name=folder.name, batch_size=2)
    return Task(f"{option}, seed {seed}", folder, tuple(command), run, keep=True)


def _normdet(*words) -> list[str]:
    return [sys.executable, "-m", "normdet", *map(str, words)]


def _row(option: str, seed: int, run: Run, args: argparse.Namespace) -> dict:
    note = _NOTES.get(option, "")
    if run.status != DONE:
        note = "; ".join(filter(None, (note, run.note)))
    metrics = ("box_AP", "box_AP50", "mask_AP", "mask_AP50")
    return {
        "option": option, "images_per_batch": 2, "seed": seed, "iterations": args.iterations,
        **{name: _number(run.score(name)) for name in metrics}, "note": note,
        "versions": run.versions,
        "machine": f"{run.machine}, {args.jobs} runs at once",
        "date": run.date[:10],
    }  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


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
