"""The arguments that several commands share, each with one spelling and one meaning."""

import argparse
from collections.abc import Sequence

from normdet.errors import NormdetError


def names(text: str) -> list[str] | None:
    """The names in `A,B`; None if there are none."""
    return text.split(",") if text else None


_COMMON = {
    "--config-file": {"metavar": "FILE", "help": "a YAML file, or one of our own"},
    "--norm": {
        "metavar": "OPTION", "help": "the --norm it was trained with, if it was given one"
    },
    "--norm-parts": {
        "type": names, "metavar": "A,B", "help": "the parts that --norm goes to, or 'all'"
    },
    "--allow-unsafe-weights": {
        "action": "store_true", "help": "load weight files that can run code; for files you trust"
    },
    "--anonymize": {
        "action": argparse.BooleanOptionalAction,
        "help": "numbers in place of the names of files and folders in all that is written and "
        "printed; a file beside the results has the key",
    },
    "opts": {"nargs": "*", "metavar": "KEY VALUE", "help": "config keys and their values"},
}  # fmt: skip


def add_common(parser: argparse.ArgumentParser, name: str, **own) -> None:
    """Add an argument that several commands share; `own` replaces settings of it.

    A parser with `opts` must read by `parse_intermixed_args`: keys may stand around flags.
    """
    parser.add_argument(name, **{**_COMMON[name], **own})


def check_counts(args: argparse.Namespace, *counts: str) -> None:
    """Refuse counts below 1, given by their names in `args`.

    Raises:
        NormdetError: naming the flag.
    """
    for count in counts:
        value = getattr(args, count)
        if value is not None and value < 1:
            flag = count.replace("_", "-")
            raise NormdetError(f"--{flag} {value}: at least one is needed")


def train_arguments(
    argv: Sequence[str], command: str = "train", description: str | None = None
) -> argparse.Namespace:
    """The arguments of `normdet train` or `eval`, under detectron2's names."""
    parser = argparse.ArgumentParser(prog=f"normdet {command}", description=description)
    add = parser.add_argument
    add_common(parser, "--config-file", required=True)
    add_common(parser, "--norm", help="the norm of the usual parts: GN, GN+WS, FRN+TLU, ...")
    add_common(parser, "--norm-parts")
    add_job(parser)
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    add_common(parser, "--anonymize", default=False)
    add("--dry-run", action="store_true", help="print what would run, and stop")
    args = parser.parse_intermixed_args(argv)
    args.eval_only |= command == "eval"
    return args


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add what every training takes: its processes, `--ema`, `--resume` and config keys."""
    add = parser.add_argument
    add("--num-gpus", type=int, default=1, metavar="N", help="processes on this machine")
    add("--num-machines", type=int, default=1, metavar="N", help="machines of the job")
    add("--machine-rank", type=int, default=0, metavar="N", help="this machine's place, from 0")
    add("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT where processes meet")
    add("--ema", action="store_true", help="evaluate and save an average over the steps (EMA)")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    add_common(parser, "--allow-unsafe-weights")
    add_common(parser, "opts")
