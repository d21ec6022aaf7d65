"""The command: read the arguments, and append rows to one CSV per machine."""

import argparse
import csv
import datetime
import itertools
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from normdet.errors import NormdetError
from normdet.files.versions import as_text, installed
from normdet.lab.bench import data, kernels, layers, measure, step
from normdet.options import read_stated

COLUMNS = (
    "date versions machine command op shape dtype layout provider mode median_ms q25_ms q75_ms "
    "kept_bytes peak_bytes share_of_copy_bandwidth over_first largest_batch"
).split()
# The columns that are printed while it runs, and their widths.
_TOLD = {
    "target": 7, "op": 14, "shape": 16, "dtype": 9, "layout": 13, "provider": 22, "mode": 9,
    "task": 9, "size": 7, "unit": 30, "seconds": 8, "growth": 6, "peak_mb": 7,
    "median_ms": 10, "pass": 8, "registers": 4, "host_us_over_noop": 5,
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark named by `argv` and append to the machine's CSV.

    Raises:
        NormdetError: if a GPU is asked for and there is none.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = _arguments(argv)
    if args.kernels:
        _kernels(args, argv)
        return
    if args.data:
        path = Path(args.output) / "data.csv"
        sizes = data.QUICK if args.quick else data.FULL
        _write(path, data.rows(sizes, args.scale), _about("cpu", argv), data.COLUMNS)
        print(f"wrote {path}")
        return
    device = "cuda" if args.gpu else "cpu"
    if args.gpu and not torch.cuda.is_available():
        raise NormdetError("--gpu needs a CUDA device, and torch finds none")
    if args.step:
        size = args.size or (800 if args.gpu else 320)
        norms = tuple(_with_ways(args))
    else:
        found = _layer_rows(args, device)
    folder = Path(args.output)
    if args.gpu:
        folder /= measure.slug(measure.machine(device))
    kind = "step" if args.step else "ops"
    path = folder / f"bench-{kind}-{measure.slug(measure.machine(device))}.csv"
    about = _about(device, argv)
    old = _unfinished(path, about) if args.step and args.resume else []
    if args.step:
        done = {(row["op"], row["provider"]) for row in old}
        found = step.rows(
            device, norms, size, args.seconds or 10, done, args.budget, args.freeze_at
        )
    _write(path, itertools.chain(old, found), about)
    print(f"wrote {path}")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "normdet bench",
        description="Time the layers and their fast forms, one row each into a CSV of the machine.",
    )
    parser.add_argument("--gpu", action="store_true", help="measure on CUDA")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="without a GPU: compile the Triton kernels, look at their machine code, and measure "
        "how long a call keeps the host",
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        default=list(kernels.TARGETS),
        help="GPUs of --kernels (%(default)s)",
    )
    parser.add_argument(
        "--data",
        action="store_true",
        help="routes of data instead: prepare, predict, registration, evaluation, compare's plan",
    )
    parser.add_argument("--quick", action="store_true", help="--data: a few files, to see it run")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="--data: this share of the sizes (1)"
    )
    parser.add_argument(
        "--no-host", action="store_true", help="--kernels: without the host's time (busy machines)"
    )
    parser.add_argument("--short", action="store_true", help="--kernels: a few shapes alone")
    parser.add_argument("--step", action="store_true", help="whole training steps instead")
    parser.add_argument(
        "--output", default="results", metavar="DIR", help="folder of the CSV (results)"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, help="default: fp32, on a GPU bf16 and fp32"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="also in that layout; --step: CHANNELS_LAST"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument(
        "--seconds", type=float, help="time for each provider and mode (0.5; a step: 10)"
    )
    parser.add_argument("--shapes", nargs="+", metavar="NxCxHxW", help="these shapes instead")
    parser.add_argument("--norms", nargs="+", default=list(step.NORMS), help="norms of --step")
    parser.add_argument(
        "--recompute", action="store_true", help="--step: each GN and FRN also with RECOMPUTE"
    )
    parser.add_argument(
        "--folded", action="store_true", help="--step: each FrozenBN, AffineBN also with FOLD_FIXED"
    )
    parser.add_argument(
        "--resume", action="store_true", help="--step: keep the rows of this command's stopped run"
    )
    parser.add_argument(
        "--budget", type=float, metavar="GB", help="--step: find the largest batch within this"
    )
    parser.add_argument(
        "--freeze-at", type=int, default=0, metavar="N", help="--step: frozen stages (0)"
    )
    parser.add_argument("--size", type=int, help="short side of --step (320, on a GPU 800)")
    return parser.parse_args(argv)


def _kernels(args: argparse.Namespace, argv: list[str]) -> None:
    """Write the table of the kernels' machine code; faults raise after the last row."""
    path = Path(args.output) / "kernels.csv"
    versions = {key: _about("cpu", argv)[key] for key in ("date", "versions")}
    found = kernels.check(kernels.rows(args.targets, args.short, not args.no_host))
    _write(path, found, versions, kernels.COLUMNS)
    print(f"wrote {path}")


def _layer_rows(args: argparse.Namespace, device: str) -> Iterable[dict]:
    shapes = layers.SHAPES[device]
    if args.shapes:
        shapes = [_shape(text) for text in args.shapes]
    bandwidth = measure.copy_bandwidth(device)
    dtypes = args.dtype or (["bf16", "fp32"] if device == "cuda" else ["fp32"])
    seconds, compiled = args.seconds or 0.5, not args.no_compile
    for dtype in dtypes:
        for last in (False, True) if args.channels_last else (False,):
            for shape in shapes:
                case = layers.Input(shape, DTYPES[dtype], last, device)
                yield from layers.rows(case, bandwidth, seconds, compiled)
    for shape in () if args.shapes else layers.WEIGHTS:
        case = layers.Input(shape, torch.float32, False, device)
        yield from layers.rows(case, bandwidth, seconds, compiled, layers.weight_providers)


def _with_ways(args: argparse.Namespace) -> Iterable[str]:
    """Each norm, and again in the ways wanted: one with a fused form, one of fixed statistics."""
    for norm in args.norms:
        yield norm
        option = read_stated(norm)
        if args.recompute and option.norm in ("GN", "LN", "IN", "FRN"):
            yield norm + step.RECOMPUTE
        if args.folded and option.needs_statistics:
            yield norm + step.FOLDED
        if args.channels_last:
            yield norm + step.LAST


def _unfinished(path: Path, about: dict[str, str]) -> list[dict]:
    """Rows of an earlier, stopped run of the same command on this machine."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    alike = ("versions", "machine", "command")
    return rows if all(row[key] == about[key] for row in rows for key in alike) else []


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1 or shape[1] % layers.GROUPS:
        raise NormdetError(
            f"--shapes {text!r} is not NxCxHxW with C a multiple of {layers.GROUPS}, "
            "like 2x256x100x100"
        )
    return shape


def _about(device: str, argv: list[str]) -> dict[str, str]:
    packages = as_text(installed("torch", "triton", "timm", "detectron2", "sal-detectron2"))
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    return {
        "date": datetime.date.today().isoformat(),
        "versions": f"python {sys.version.split()[0]}, {packages}",
        "machine": measure.machine(device) + threads,
        "command": shlex.join(["normdet", "bench", *(a for a in argv if a != "--resume")]),
    }


def _write(
    path: Path, rows: Iterable[dict], about: dict[str, str], columns: Sequence[str] = COLUMNS
) -> None:
    """Write each row at once, so that a stopped run keeps its rows."""
    rows = iter(rows)
    rows = itertools.chain([next(rows)], rows)  # make the file with the first row
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow(about | row)
            file.flush()
            told = (f"{row[key]!s:{width}}" for key, width in _TOLD.items() if key in row)
            print(*told, flush=True)
