"""`normdet compare`: train norms against each other on your data, and report with intervals."""

import argparse
import itertools
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from normdet.arguments import add_common, check_counts
from normdet.config import load_config
from normdet.data import image_files
from normdet.engine.launch import Interrupted
from normdet.errors import NormdetError
from normdet.files.words import first_of
from normdet.lab.compare import local, record, stats, table
from normdet.lab.compare.cell import CRASHED, RESULTS, Task
from normdet.lab.compare.display import Display
from normdet.lab.compare.plan import TUNING_SEED, Cell, Plan, config_hash, parse_arms
from normdet.lab.compare.ray_pool import RayPool

_EPILOG = """
Every run sees the same number of images: for batches of b images where the config has B, rates
are multiplied by b/B (the linear rule) and iterations, steps, warm-up and periods by B/b. The
momentum m of a norm's running averages becomes 1-(1-m)^(b/B): they average over the same number
of images. Each run is one process; batches of b images are b images per GPU.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what of the grid has no result yet, and write runs.csv, report.md and report.html.

    Returns:
        0, or 1 where runs crashed.

    Raises:
        NormdetError: bad input, or a folder that holds another comparison.
        Interrupted: SIGINT or SIGTERM; the runs in flight are saved.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parse(argv)
    stats.student_t()  # before hours of training, not after
    plan = _plan(args)
    if args.dry_run:
        _show(plan)
        return 0
    with record.taken(args.out):
        plan = record.snapshot(args.out, plan)
        comparison = Comparison(plan, args)
        if not args.report_only:
            _refuse_shared_images(plan)
            comparison.run()
        return comparison.report(shlex.join(["normdet", "compare", *argv]))


class Comparison:
    """The runs of a plan in their folder."""

    def __init__(self, plan: Plan, args: argparse.Namespace):
        self.plan = plan
        self._out: Path = args.out.resolve()
        self._args = args
        self._rows: dict[str, dict] = {}
        self._tasks: dict[Cell, Task] = {}
        self._console = Console(highlight=False)

    def run(self) -> None:
        """Run every cell that has no result: those that pick rates first, then the reported."""
        tuning = self.plan.tuning_cells()
        pool = self._pool()
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with Display(self._console, len(tuning) + len(self.plan.reported)) as display:
                self._run(tuning, pool, display)
                self._run(self.plan.cells(self.chosen()), pool, display)
        except KeyboardInterrupt as interrupt:
            raise self._interrupted(interrupt) from None
        finally:
            pool.close()
            signal.signal(signal.SIGTERM, before)

    def _run(self, cells: Sequence[Cell], pool, display: Display) -> None:
        tasks = [self.task(cell) for cell in cells]
        finished = self._finished(tasks)
        for row in table.read_cells(self._out / "cells"):
            if row.get("memory_mb") and row["status"] in RESULTS:
                pool.learn(row["norm"], row["batch_size"], row["memory_mb"])
        display.add(tasks, finished)
        for task in tasks:
            if task.folder.name not in finished:
                pool.submit(task)
        while pool.busy:
            for task, row in pool.wait(1.0):
                if row is not None:
                    row = {**task.row, **row}
                    self._rows[task.folder.name] = row
                    display.ended(task, row)
                    self._write_table()
            display.refresh(pool.running)

    def _finished(self, tasks: Iterable[Task]) -> dict[str, dict]:
        """The rows of cells that need no run, each checked to be of this very config."""
        found = {}
        for task in tasks:
            row = table.read_cell(task.result_file)
            begun = row or table.read_cell(task.start_file)
            if begun and begun["config_hash"] != task.row["config_hash"]:
                raise NormdetError(
                    f"{task.folder} holds {task.title} of another config (hash "
                    f"{begun['config_hash']}, now {task.row['config_hash']}): give another --out, "
                    "or the variant another name"
                )
            if row is None:
                continue
            self._rows[task.folder.name] = row
            if row["status"] in RESULTS:
                found[task.folder.name] = row
        return found

    def chosen(self) -> dict[tuple[str, int], float]:
        """The rate's factor by norm and batch size, picked by AP on the validation split.

        Runs that diverged have no AP to win with; where all did it is the lowest rate.
        """
        rows = [self._rows.get(cell.slug) for cell in self.plan.tuning_cells()]
        rows = [row for row in rows if row and row["status"] in RESULTS]
        picked = {}
        for arm in self.plan.arms:
            for size in self.plan.batch_sizes:
                own = [r for r in rows if (r["norm"], r["batch_size"]) == (arm.name, size)]
                if len(own) == len(self.plan.factors):
                    picked[arm.name, size] = _best_factor(own, self._args.metric)
        return picked

    def task(self, cell: Cell) -> Task:
        """What runs for a cell, made once."""
        if cell not in self._tasks:
            self._tasks[cell] = self._task(cell)
        return self._tasks[cell]

    def _task(self, cell: Cell) -> Task:
        folder = self._out / "cells" / cell.slug
        cfg = self.plan.config(cell)
        words = self.plan.arguments(cell, folder)
        row = {
            "run": cell.slug,
            "dataset": _dataset(cfg.DATASETS.ROOT, cfg.DATASETS.TEST[0]),
            "norm": cell.arm.name,
            "batch_size": cell.batch_size,
            "seed": cell.seed,
            "init": cfg.MODEL.WEIGHTS or "random",
            "option": cell.arm.option,
            "role": "tuning" if cell.tuning else "test",
            "lr": cfg.SOLVER.BASE_LR,
            "lr_factor": cell.factor,
            "iterations": cfg.SOLVER.MAX_ITER,
            "images_seen": cfg.SOLVER.MAX_ITER * cell.batch_size,
            "config_hash": config_hash(cfg),
        }
        command = (sys.executable, "-m", "normdet", "train", *words)
        return Task(cell.title, folder, command, row, self._args.keep_checkpoints)

    def _pool(self):
        args = self._args
        device = self.plan.base.MODEL.DEVICE
        on_gpu = device.startswith("cuda") and (bool(args.ray) or bool(local.visible_gpus()))
        if args.ray:
            pool = RayPool(args.ray, args.threads or 1, args.gpu_share if on_gpu else 0)
            if on_gpu and not pool.gpus:
                self._say(
                    "the cluster has no GPU: runs wait until a machine with one joins it; "
                    "MODEL.DEVICE cpu runs without"
                )
            return pool
        cores = local.usable_cores()
        gpus = local.visible_gpus() if on_gpu else []
        most = len(gpus) * max(1, int(1 / args.gpu_share + 1e-9)) if gpus else cores
        jobs = min(args.jobs or most, most) if gpus else args.jobs or most
        threads = args.threads or max(1, cores // jobs)
        return local.LocalPool(local.slots(jobs, gpus, args.gpu_share, threads))

    def _write_table(self) -> None:
        table.write(table.read_cells(self._out / "cells"), self._out / "runs.csv")

    def _interrupted(self, interrupt: KeyboardInterrupt) -> Interrupted:
        number = getattr(interrupt, "signal", signal.SIGINT)
        done = sum(row["status"] in RESULTS for row in self._rows.values())
        return Interrupted(
            f"stopped by {signal.Signals(number).name}; {done} runs are done, those in flight are "
            "saved where they stood, and the same command goes on",
            number,
        )

    def report(self, command: str) -> int:
        """Write the table and the report of the plan's cells; 1 where some crashed."""
        from normdet.lab.compare.report import write_report

        tuning = [self.task(cell) for cell in self.plan.tuning_cells()]
        self._finished(tuning)
        tested = [self.task(cell) for cell in self.plan.cells(self.chosen())]
        self._finished(tested)
        self._write_table()
        rows = [self._rows[t.folder.name] for t in tuning + tested if t.folder.name in self._rows]
        crashed = [row for row in rows if row["status"] == CRASHED]
        if not any(row["role"] == "test" and row["status"] in RESULTS for row in rows):
            raise NormdetError(f"{self._out}: no run has a result yet: there is nothing to report")
        write_report(
            self._out, rows, baseline=self._args.baseline or _baseline(self.plan),
            metric=self._args.metric, command=command, plan=self.plan,
        )  # fmt: skip
        for row in crashed:
            log = self._out / "cells" / row["run"] / "output.txt"
            self._say(f"crashed: {row['run']}: {row['note']}; its log is {log}")
        self._say(f"report: {self._out / 'report.html'}")
        return 1 if crashed else 0

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _best_factor(rows: Sequence[Mapping], metric: str | None) -> float:
    metric = metric or table.primary_metric(rows)
    scored = [row for row in rows if row.get(metric) is not None]
    if not scored:
        return min(row["lr_factor"] for row in rows)
    return max(scored, key=lambda row: (row[metric], -row["lr_factor"]))["lr_factor"]


def _dataset(root: str, text: str) -> str:
    return f"{Path(root).name} {text}" if root else text


def _baseline(plan: Plan) -> str:
    names = [arm.name for arm in plan.arms]
    return "FrozenBN" if "FrozenBN" in names else names[0]


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted("stopped", number)


def _show(plan: Plan) -> None:
    """Print the grid: nothing is trained, and nothing written."""
    cells = plan.tuning_cells() or []
    first = {(a.name, b): plan.factors[0] for a in plan.arms for b in plan.batch_sizes}
    reported = plan.cells(first)
    for cell in [*cells, *reported]:
        cfg = plan.config(cell)
        rate = f"{cfg.SOLVER.BASE_LR:g}" if cell.tuning or not plan.tuned else "as picked"
        print(f"{cell.title}: {cfg.SOLVER.MAX_ITER} iterations, rate {rate}")
    print(f"{len(cells)} runs to pick rates and {len(reported)} to report")


def _plan(args: argparse.Namespace) -> Plan:
    opts = tuple(args.opts)
    cfg = load_config(args.config_file, opts)
    arms = parse_arms(args.norms, args.variant, args.init)
    if args.baseline and args.baseline not in [arm.name for arm in arms]:
        raise NormdetError(f"--baseline {args.baseline!r} is none of the norms compared")
    factors = args.lr_grid
    train, val = tuple(cfg.DATASETS.TRAIN), args.val
    test = (args.test,) if args.test else tuple(cfg.DATASETS.TEST)
    if len(test) != 1:
        raise NormdetError(
            f"DATASETS.TEST names {len(test)} datasets: a comparison reports one, named by --test"
        )
    if len(factors) > 1 and not val:
        if len(train) != 1:
            raise NormdetError("--lr-grid picks rates on a dataset of their own: name it by --val")
        val = f"split:val:{args.val_share:g}:{train[0]}"
        train = (f"split:train:{args.val_share:g}:{train[0]}",)
    if val and val == test[0]:
        raise NormdetError(f"--val {val}: the test set never picks a rate; name another dataset")
    parts = tuple(args.norm_parts) if args.norm_parts else None
    return Plan(
        args.config_file, opts, arms, args.batch_sizes, args.seeds, factors, train,
        val, test[0], parts,
    )  # fmt: skip


def _refuse_shared_images(plan: Plan) -> None:
    """What a norm is chosen or reported by must be images it was not trained on.

    Raises:
        NormdetError: naming the sets and an image of both.
    """
    root = plan.base.DATASETS.ROOT
    texts = {
        "trained on": plan.train, "rates are picked on": (plan.val,) if plan.tuned else (),
        "reported": (plan.test,),
    }  # fmt: skip
    images = {
        role: {file.resolve(): text for text in named for file in image_files(text, root)}
        for role, named in texts.items()
    }
    for (one, a), (other, b) in itertools.combinations(images.items(), 2):
        if shared := sorted(a.keys() & b.keys()):
            raise NormdetError(
                f"{len(shared)} images of {a[shared[0]]} ({one}) are in {b[shared[0]]} ({other}) "
                f"too: {first_of(map(str, shared))}: AP on them says nothing of images unseen"
            )


def _numbers(kind: type, least: float):
    def parse(text: str) -> tuple:
        try:
            numbers = tuple(dict.fromkeys(kind(part) for part in text.split(",")))
        except ValueError:
            numbers = ()
        if not numbers or not all(least < number < float("inf") for number in numbers):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers above {least}")
        return numbers

    return parse


def _seeds(text: str) -> tuple[int, ...]:
    """`3` is 1, 2, 3; `4-6` is 4, 5, 6; `1,5` is what it says."""
    seeds: tuple[int, ...] = ()
    if re.fullmatch(r"\d+", text):
        seeds = tuple(range(1, int(text) + 1))
    elif found := re.fullmatch(r"(\d+)-(\d+)", text):
        seeds = tuple(range(int(found[1]), int(found[2]) + 1))
    elif re.fullmatch(r"\d+(,\d+)+", text):
        seeds = tuple(dict.fromkeys(map(int, text.split(","))))
    if not seeds or TUNING_SEED in seeds:
        raise NormdetError(
            f"--seeds {text}: at least one is needed: a count such as 3, a range such as 4-8 or a "
            f"list such as 1,5; {TUNING_SEED} is the seed that picks rates"
        )
    return seeds


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="normdet compare", epilog=_EPILOG,
        description="Train norms against each other on your data, and report with intervals.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add_common(parser, "--config-file", required=True)
    add("--norms", default="", metavar="A,B", help="norm options: FrozenBN,BN,GN,GN+WS,FRN+TLU")
    add(
        "--variant", action="append", default=[], metavar="'NAME=OPTION KEY VALUE ...'",
        help="one more to compare: an option with config keys of its own; may be repeated",
    )  # fmt: skip
    add(
        "--batch-sizes", type=_numbers(int, 0), default=(1, 2, 4, 8), metavar="1,2",
        help="images a step (1,2,4,8)",
    )  # fmt: skip
    add(
        "--seeds", default="3", metavar="N|A-B|A,B",
        help="runs of each with seeds 1 to N, A to B, or those named (3)",
    )  # fmt: skip
    add(
        "--lr-grid", type=_numbers(float, 0), default=(1.0,), metavar="0.5,1,2",
        help="rates as multiples of the linear rule's, picked for each norm and batch size on the "
        "validation set by a run with seed 0",
    )  # fmt: skip
    add(
        "--init", action="append", default=[], metavar="[NAME=]random|WEIGHTS",
        help="start weights of all or, with NAME=, of one; the config's MODEL.WEIGHTS otherwise",
    )  # fmt: skip
    add_common(parser, "--norm-parts", help="the parts that norms go to, or 'all'")
    add("--val", default="", metavar="DATASET", help="the dataset that rates are picked on")
    add(
        "--val-share", type=float, default=0.2, metavar="SHARE",
        help="without --val: this share of the training images is held out for it (0.2)",
    )  # fmt: skip
    add(
        "--test", default="", metavar="DATASET",
        help="the dataset that is reported (DATASETS.TEST)",
    )  # fmt: skip
    add(
        "--baseline", default="", metavar="NAME",
        help="the norm that differences are taken to (FrozenBN)",
    )  # fmt: skip
    add(
        "--metric", choices=table.AP_COLUMNS, metavar="COLUMN",
        help="the metric that is tested (mask_AP, or box_AP without masks)",
    )  # fmt: skip
    add(
        "--jobs", type=int, metavar="N",
        help="most runs at once, if memory allows (one a core or GPU)",
    )  # fmt: skip
    add("--threads", type=int, metavar="N", help="CPU threads of each run")
    add("--gpu-share", type=float, default=1.0, metavar="X", help="share of a GPU for each run (1)")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster; 'local' starts one here")
    add("--keep-checkpoints", action="store_true", help="keep the weights of finished runs")
    add("--report-only", action="store_true", help="run nothing; report what there is")
    add("--dry-run", action="store_true", help="print the grid, and stop")
    add("--out", required=True, type=Path, metavar="DIR", help="the comparison's folder")
    add_common(parser, "opts")
    args = parser.parse_intermixed_args(argv)
    args.seeds = _seeds(args.seeds)
    check_counts(args, "jobs", "threads")
    if not 0 < args.gpu_share <= 1:
        parser.error(f"--gpu-share {args.gpu_share} is not above 0 and at most 1")
    return args
