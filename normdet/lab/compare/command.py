"""`normdet compare`: train norms against each other on your data, and report with intervals."""

import argparse
import itertools
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from normdet.arguments import add_common, check_counts
from normdet.config import load_config
from normdet.data import image_files
from normdet.errors import NormdetError
from normdet.files.words import first_of
from normdet.lab.compare import folder, stats
from normdet.lab.compare.comparison import Comparison
from normdet.lab.compare.plan import TUNING_SEED, Plan, parse_arms
from normdet.lab.compare.runs import AP_COLUMNS

_EPILOG = """
Every run sees the same number of images: for batches of b images where the config has B, rates
are multiplied by b/B (the linear rule) and iterations, steps, warm-up and periods by B/b. The
momentum m of a norm's running averages becomes 1-(1-m)^(b/B): they average over the same number
of images. Each run is one process; batches of b images are b images per GPU.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells of the grid without a result; write runs.csv, report.md and report.html.

    Returns:
        0, or 1 if runs crashed.

    Raises:
        NormdetError: bad input, or the folder holds another comparison.
        Interrupted: SIGINT or SIGTERM; the current runs are saved.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_arguments(argv)
    stats.scipy_stats()  # check before hours of training, not after
    plan = _plan(args)
    if args.dry_run:
        _show(plan)
        return 0
    with folder.taken(args.out):
        plan = folder.snapshot(args.out, plan)
        comparison = Comparison(plan, args)
        if not args.report_only:
            _refuse_shared_images(plan)
            comparison.run()
        return comparison.report(shlex.join(["normdet", "compare", *argv]))


def _show(plan: Plan) -> None:
    """Print the grid. Nothing is trained or written."""
    tuning = plan.tuning_cells()
    tested = plan.test_cells({(arm.name, size): plan.factors[0] for arm, size in plan.grid})
    for cell in [*tuning, *tested]:
        cfg = plan.config(cell)
        rate = f"{cfg.SOLVER.BASE_LR:g}" if cell.tuning or not plan.tuned else "as picked"
        print(f"{cell.title}: {cfg.SOLVER.MAX_ITER} iterations, rate {rate}")
    print(f"{len(tuning)} runs to pick rates and {len(tested)} to report")


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
    """Refuse sets to choose or report by that share images with the training sets.

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
    """The seeds of a text: `3` is 1, 2, 3; `4-6` is 4, 5, 6; `1,5` is 1, 5."""
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


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command's words."""
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
        "--metric", choices=AP_COLUMNS, metavar="COLUMN",
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
